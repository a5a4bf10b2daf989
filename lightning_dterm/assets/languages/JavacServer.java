import com.sun.source.util.JavacTask;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import javax.lang.model.element.Element;
import javax.lang.model.element.ExecutableElement;
import javax.lang.model.element.Modifier;
import javax.lang.model.element.TypeElement;
import javax.lang.model.util.ElementFilter;
import javax.tools.Diagnostic;
import javax.tools.FileObject;
import javax.tools.ForwardingJavaFileManager;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileManager;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.StandardJavaFileManager;
import javax.tools.StandardLocation;
import javax.tools.ToolProvider;

/**
 * One warm compiler for many programs. Request: mode (0 parse, 1 analyse, 2 generate), CPU limit in ms, number of
 * sources, each name and text. Answer: status, diagnostics, main class, class files. Nothing that is compiled is ever
 * loaded, no annotation processor runs.
 */
public final class JavacServer {
    private static final int MAX_DIAGNOSTICS = 200, OK = 0, CRASH = 1, TIMEOUT = 2, MEMORY = 3;

    private static final class Source extends SimpleJavaFileObject {
        private final String text;

        Source(String name, String text) {
            super(URI.create("string:///" + name), Kind.SOURCE);
            this.text = text;
        }

        @Override public CharSequence getCharContent(boolean ignoreEncodingErrors) { return text; }

        @Override public boolean isNameCompatible(String simpleName, Kind kind) { return true; }
    }

    private static final class Files extends ForwardingJavaFileManager<StandardJavaFileManager> {
        final Map<String, ByteArrayOutputStream> classes = new LinkedHashMap<>();

        Files(StandardJavaFileManager manager) { super(manager); }

        @Override public JavaFileObject getJavaFileForOutput(
                Location location, String name, JavaFileObject.Kind kind, FileObject sibling) {
            return new SimpleJavaFileObject(URI.create("mem:///" + name.replace('.', '/') + ".class"), kind) {
                @Override public OutputStream openOutputStream() {
                    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
                    classes.put(name, bytes);
                    return bytes;
                }
            };
        }

        @Override public Iterable<JavaFileObject> list(
                Location location, String packageName, Set<JavaFileObject.Kind> kinds, boolean recurse)
                throws java.io.IOException {
            if (location == StandardLocation.CLASS_PATH || location == StandardLocation.SOURCE_PATH) {
                return Collections.emptyList();
            }
            return super.list(location, packageName, kinds, recurse);
        }
    }

    private final JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    private final StandardJavaFileManager manager =
            compiler.getStandardFileManager(null, Locale.ROOT, StandardCharsets.UTF_8);

    private final class Job extends Thread {
        final int mode;
        final List<Source> sources;
        final List<Diagnostic<? extends JavaFileObject>> found = new ArrayList<>();
        Files files = new Files(manager);
        String main = "";
        volatile int status = OK;
        volatile String reason = "";
        volatile long cpuNanos;

        Job(int mode, List<Source> sources) {
            super(null, null, "compile", 64L << 20);
            this.mode = mode;
            this.sources = sources;
            setDaemon(true);
        }

        @Override public void run() {
            try {
                JavacTask task = (JavacTask) compiler.getTask(
                        new java.io.PrintWriter(OutputStream.nullOutputStream()),
                        files,
                        diagnostic -> {
                            boolean error = diagnostic.getKind() == Diagnostic.Kind.ERROR;
                            if (found.size() < (error ? MAX_DIAGNOSTICS : MAX_DIAGNOSTICS / 2)) {
                                found.add(diagnostic);
                            }
                        },
                        List.of("-proc:none", "-implicit:none", "-Xmaxerrs", "150", "-g:source,lines"), null, sources);
                task.setLocale(Locale.ROOT);
                task.parse();
                if (mode > 0 && !failed()) {
                    for (Element element : task.analyze()) {
                        visit(element);
                    }
                }
                if (mode > 1 && !failed()) {
                    task.generate();
                }
            } catch (OutOfMemoryError error) {
                status = MEMORY;
                reason = "javac ran out of memory";
            } catch (Throwable error) {
                boolean deep = false;
                for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                    deep |= cause instanceof StackOverflowError;
                    status = cause instanceof OutOfMemoryError ? MEMORY : status;
                }
                status = status == MEMORY ? MEMORY : CRASH;
                reason = deep ? "nested too deeply for javac" : error.getClass().getName();
            }
            cpuNanos = ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
        }

        private boolean failed() {
            return found.stream().anyMatch(one -> one.getKind() == Diagnostic.Kind.ERROR);
        }

        private void visit(Element element) {
            if (!(element instanceof TypeElement) || !main.isEmpty()) {
                return;
            }
            for (ExecutableElement method : ElementFilter.methodsIn(element.getEnclosedElements())) {
                if (method.getSimpleName().contentEquals("main")
                        && method.getModifiers().containsAll(Set.of(Modifier.PUBLIC, Modifier.STATIC))
                        && method.getParameters().size() == 1
                        && method.getParameters().get(0).asType().toString().equals("java.lang.String[]")) {
                    main = ((TypeElement) element).getQualifiedName().toString();
                    return;
                }
            }
            element.getEnclosedElements().forEach(this::visit);
        }
    }

    private static String text(DataInputStream in) throws java.io.IOException {
        byte[] bytes = new byte[in.readInt()];
        in.readFully(bytes);
        return new String(bytes, StandardCharsets.UTF_8);
    }

    private static void write(DataOutputStream out, byte[] bytes) throws java.io.IOException {
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static void write(DataOutputStream out, String text) throws java.io.IOException {
        write(out, text.getBytes(StandardCharsets.UTF_8));
    }

    private static void answer(DataOutputStream channel, Job job, long cpuNanos) throws java.io.IOException {
        ByteArrayOutputStream buffer = new ByteArrayOutputStream();
        DataOutputStream out = new DataOutputStream(buffer);
        boolean ended = job.status == OK;
        out.writeInt(job.status);
        out.writeLong(cpuNanos);
        write(out, job.reason);
        List<Diagnostic<? extends JavaFileObject>> found = ended ? job.found : List.of();
        out.writeInt(found.size());
        for (Diagnostic<? extends JavaFileObject> one : found) {
            Diagnostic.Kind kind = one.getKind();
            out.writeInt(kind == Diagnostic.Kind.ERROR ? 0 : kind == Diagnostic.Kind.NOTE ? 2 : 1);
            write(out, one.getSource() == null ? "" : one.getSource().getName());
            long from = one.getStartPosition(), at = one.getPosition(), to = one.getEndPosition();
            boolean placed = at != Diagnostic.NOPOS;
            out.writeInt(placed ? (int) Math.min(from == Diagnostic.NOPOS ? at : from, at) : -1);
            out.writeInt(placed ? (int) Math.max(to, at) : -1);
            String message = one.getMessage(Locale.ROOT);
            write(out, message.substring(0, Math.min(message.length(), 400)));
        }
        write(out, ended ? job.main : "");
        Map<String, ByteArrayOutputStream> classes = ended ? job.files.classes : Map.of();
        out.writeInt(classes.size());
        for (Map.Entry<String, ByteArrayOutputStream> entry : classes.entrySet()) {
            write(out, entry.getKey());
            write(out, entry.getValue().toByteArray());
        }
        write(channel, buffer.toByteArray());
        channel.flush();
    }

    private void serve(DataInputStream in, DataOutputStream out) throws Exception {
        var threads = ManagementFactory.getThreadMXBean();
        while (true) {
            int mode = in.readInt();
            long limit = in.readInt() * 1_000_000L;
            int count = in.readInt();
            List<Source> sources = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                String name = text(in);
                sources.add(new Source(name, text(in)));
            }
            Job job = new Job(mode, sources);
            job.start();
            long spent = 0;
            while (job.isAlive()) {
                job.join(50);
                spent = Math.max(spent, threads.getThreadCpuTime(job.getId()));
                if (spent > limit && job.isAlive()) {
                    job.status = TIMEOUT;
                    job.reason = "javac needed more than its CPU limit";
                    answer(out, job, spent);
                    Runtime.getRuntime().halt(3);
                }
            }
            answer(out, job, Math.max(spent, job.cpuNanos));
            if (job.status == MEMORY) {
                Runtime.getRuntime().halt(3);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        DataInputStream in = new DataInputStream(new java.io.BufferedInputStream(System.in));
        DataOutputStream out = new DataOutputStream(new java.io.BufferedOutputStream(System.out));
        System.setOut(System.err);
        try {
            new JavacServer().serve(in, out);
        } catch (java.io.EOFException end) {
            Runtime.getRuntime().halt(0);
        }
    }
}
