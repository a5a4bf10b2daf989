import java.lang.reflect.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

/** Calls one method with values read from standard input and prints what it returns. Expected values never come here. */
public final class DtermDriver {
    // --- values ---------------------------------------------------------------------------------------------------------

    private static final class Parser {
        private final String text;
        private int at;

        Parser(String text) { this.text = text; }

        Object value() {
            char c = text.charAt(at);
            if (c == '[') {
                List<Object> items = new ArrayList<>();
                at++;
                while (text.charAt(at) != ']') {
                    items.add(value());
                    if (text.charAt(at) == ',') at++;
                }
                at++;
                return items;
            }
            if (c == '{') {
                at++;
                String tag = string();
                at++;
                Object content = value();
                at++;
                return new Object[] {tag, content};
            }
            if (c == '"') return string();
            int end = at;
            while (end < text.length() && ",]}".indexOf(text.charAt(end)) < 0) end++;
            String word = text.substring(at, end);
            at = end;
            return switch (word) {
                case "null" -> null;
                case "true" -> true;
                case "false" -> false;
                default -> Long.valueOf(word);
            };
        }

        private String string() {
            StringBuilder out = new StringBuilder();
            for (at++; text.charAt(at) != '"'; at++) {
                char c = text.charAt(at);
                if (c != '\\') {
                    out.append(c);
                    continue;
                }
                c = text.charAt(++at);
                switch (c) {
                    case 'n' -> out.append('\n');
                    case 't' -> out.append('\t');
                    case 'r' -> out.append('\r');
                    case 'b' -> out.append('\b');
                    case 'f' -> out.append('\f');
                    case 'u' -> {
                        out.append((char) Integer.parseInt(text.substring(at + 1, at + 5), 16));
                        at += 4;
                    }
                    default -> out.append(c);
                }
            }
            at++;
            return out.toString();
        }
    }

    private static Class<?> raw(Type type) {
        if (type instanceof Class<?> plain) return plain;
        if (type instanceof ParameterizedType generic) return raw(generic.getRawType());
        if (type instanceof GenericArrayType array) return Array.newInstance(raw(array.getGenericComponentType()), 0).getClass();
        return Object.class;
    }

    private static Type argument(Type type, int index) {
        return type instanceof ParameterizedType generic ? generic.getActualTypeArguments()[index] : Object.class;
    }

    private static Object convert(Object value, Type type) {
        Class<?> to = raw(type);
        if (value == null) return null;
        if (value instanceof Object[] tagged) return tagged((String) tagged[0], tagged[1], type, to);
        if (value instanceof Long number) return number(number, to);
        if (value instanceof String text) {
            if (to == char.class || to == Character.class) return text.charAt(0);
            if (to == char[].class) return text.toCharArray();
            return text;
        }
        if (value instanceof List<?> items) {
            if (to.isArray()) {
                Type inner = type instanceof GenericArrayType array ? array.getGenericComponentType() : to.getComponentType();
                Object array = Array.newInstance(to.getComponentType(), items.size());
                for (int i = 0; i < items.size(); i++) Array.set(array, i, convert(items.get(i), inner));
                return array;
            }
            return fill(collection(to), items, argument(type, 0));
        }
        return value;
    }

    private static Object number(Long number, Class<?> to) {
        if (to == int.class || to == Integer.class || to == Object.class && number == number.intValue()) return number.intValue();
        if (to == double.class || to == Double.class) return number.doubleValue();
        if (to == float.class || to == Float.class) return number.floatValue();
        if (to == short.class || to == Short.class) return number.shortValue();
        if (to == byte.class || to == Byte.class) return number.byteValue();
        if (to == java.math.BigInteger.class) return java.math.BigInteger.valueOf(number);
        return number;
    }

    private static Object tagged(String tag, Object content, Type type, Class<?> to) {
        switch (tag) {
            case "float":
                String word = (String) content;
                double real = switch (word) {
                    case "inf" -> Double.POSITIVE_INFINITY;
                    case "-inf" -> Double.NEGATIVE_INFINITY;
                    case "nan" -> Double.NaN;
                    default -> Double.parseDouble(word);
                };
                return to == float.class || to == Float.class ? (Object) (float) real : (Object) real;
            case "int":
                java.math.BigInteger big = new java.math.BigInteger((String) content);
                return to == java.math.BigInteger.class ? (Object) big : (Object) big.longValueExact();
            case "set":
                Collection<Object> set = to == Object.class || Set.class.isAssignableFrom(to) ? new LinkedHashSet<>() : collection(to);
                return fill(set, (List<?>) content, argument(type, 0));
            default:
                Map<Object, Object> map = SortedMap.class.isAssignableFrom(to) ? new TreeMap<>() : new LinkedHashMap<>();
                for (Object pair : (List<?>) content) {
                    List<?> parts = (List<?>) pair;
                    map.put(convert(parts.get(0), argument(type, 0)), convert(parts.get(1), argument(type, 1)));
                }
                return to == HashMap.class ? new HashMap<>(map) : map;
        }
    }

    private static Collection<Object> collection(Class<?> to) {
        if (SortedSet.class.isAssignableFrom(to)) return new TreeSet<>();
        if (Set.class.isAssignableFrom(to)) return new LinkedHashSet<>();
        if (to == LinkedList.class || Deque.class.isAssignableFrom(to) || to == Queue.class) return new LinkedList<>();
        return new ArrayList<>();
    }

    private static Object fill(Collection<Object> target, List<?> items, Type inner) {
        for (Object item : items) target.add(convert(item, inner));
        return target;
    }

    private static void show(Object value, StringBuilder out, int depth) {
        if (depth > 60) throw new IllegalArgumentException("nested too deeply");
        if (value == null || value instanceof Boolean) out.append(value);
        else if (value instanceof Integer || value instanceof Short || value instanceof Byte) out.append(value);
        else if (value instanceof Long || value instanceof java.math.BigInteger) out.append("{\"int\":\"").append(value).append("\"}");
        else if (value instanceof Number number) {
            double real = number.doubleValue();
            String word = Double.isNaN(real) ? "nan" : Double.isInfinite(real) ? (real > 0 ? "inf" : "-inf") : Double.toString(real);
            out.append("{\"float\":\"").append(word).append("\"}");
        } else if (value instanceof CharSequence || value instanceof Character) quote(value.toString(), out);
        else if (value instanceof Optional<?> maybe) show(maybe.orElse(null), out, depth + 1);
        else if (value.getClass().isArray()) {
            List<Object> items = new ArrayList<>();
            for (int i = 0; i < Array.getLength(value); i++) items.add(Array.get(value, i));
            list(items, out, depth);
        } else if (value instanceof Set<?> set) {
            out.append("{\"set\":");
            list(set, out, depth);
            out.append('}');
        } else if (value instanceof Map<?, ?> map) {
            List<Object> pairs = new ArrayList<>();
            map.forEach((key, item) -> pairs.add(Arrays.asList(key, item)));
            out.append("{\"map\":");
            list(pairs, out, depth);
            out.append('}');
        } else if (value instanceof Iterable<?> items) list(items, out, depth);
        else throw new IllegalArgumentException("not plain data: " + value.getClass().getName());
    }

    private static void list(Iterable<?> items, StringBuilder out, int depth) {
        String between = "[";
        for (Object item : items) {
            out.append(between);
            show(item, out, depth + 1);
            between = ",";
        }
        out.append(between.equals("[") ? "[]" : "]");
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < 32 || c > 126) out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        out.append('"');
    }

    // --- the call -------------------------------------------------------------------------------------------------------

    private static Method find(String[] classes, String name, int arity) throws Exception {
        for (String one : classes) {
            for (Method method : Class.forName(one).getDeclaredMethods()) {
                if (method.getName().equals(name) && method.getParameterCount() == arity && !method.isSynthetic()) {
                    method.setAccessible(true);
                    return method;
                }
            }
        }
        throw new NoSuchMethodException(name + " with " + arity + " parameters");
    }

    private static Object call(String[] classes, String name, List<?> arguments) throws Throwable {
        Method method = find(classes, name, arguments.size());
        Object self = null;
        if (!Modifier.isStatic(method.getModifiers())) {
            Constructor<?> constructor = method.getDeclaringClass().getDeclaredConstructor();
            constructor.setAccessible(true);
            self = constructor.newInstance();
        }
        Type[] types = method.getGenericParameterTypes();
        Object[] converted = new Object[arguments.size()];
        for (int i = 0; i < converted.length; i++) converted[i] = convert(arguments.get(i), types[i]);
        try {
            return method.invoke(self, converted);
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    public static void main(String[] unused) throws Exception {
        String[] lines = new String(System.in.readAllBytes(), StandardCharsets.UTF_8).split("\n");
        String[] classes = lines[1].split(",");
        java.io.PrintStream out = System.out;
        for (int i = 3; i < lines.length; i++) {
            StringBuilder text = new StringBuilder("\n").append(lines[0]);
            try {
                Object result = call(classes, lines[2], (List<?>) new Parser(lines[i]).value());
                StringBuilder shown = new StringBuilder();
                show(result, shown, 0);
                text.append('=').append(shown);
            } catch (Throwable error) {
                String message = error.getClass().getSimpleName() + ": " + error.getMessage();
                text.append('!').append(message.substring(0, Math.min(300, message.length())).replaceAll("\\s+", " "));
            }
            out.write(text.append('\n').toString().getBytes(StandardCharsets.UTF_8));
            out.flush();
        }
        Runtime.getRuntime().halt(0);
    }
}
