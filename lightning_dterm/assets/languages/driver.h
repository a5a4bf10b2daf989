#undef main
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* Calls one function with the arguments of the test whose number it reads, and prints what it returns. */
static void dterm_int(const char *mark, long long v) { printf("\n%s={\"int\":\"%lld\"}\n", mark, v); }
static void dterm_unsigned(const char *mark, unsigned long long v) { printf("\n%s={\"int\":\"%llu\"}\n", mark, v); }
static void dterm_bool(const char *mark, _Bool v) { printf("\n%s=%s\n", mark, v ? "true" : "false"); }
static void dterm_real(const char *mark, long double v) {
  if (v != v) printf("\n%s={\"float\":\"nan\"}\n", mark);
  else printf("\n%s={\"float\":\"%.17Lg\"}\n", mark, v);
}
static void dterm_text(const char *mark, const char *v) {
  printf("\n%s=", mark);
  if (!v) {
    printf("null\n");
    return;
  }
  putchar('"');
  for (; *v; ++v) {
    if (*v == '"' || *v == '\\') printf("\\%c", *v);
    else if ((unsigned char)*v < 32) printf("\\u%04x", *v);
    else putchar(*v);
  }
  printf("\"\n");
}
static void dterm_char(const char *mark, char v) {
  char text[2] = {v, 0};
  dterm_text(mark, text);
}
#define DTERM_SHOW(mark, v) _Generic((v), \
  _Bool: dterm_bool, char: dterm_char, char *: dterm_text, const char *: dterm_text, \
  float: dterm_real, double: dterm_real, long double: dterm_real, \
  unsigned char: dterm_unsigned, unsigned short: dterm_unsigned, unsigned: dterm_unsigned, \
  unsigned long: dterm_unsigned, unsigned long long: dterm_unsigned, default: dterm_int)(mark, v)
int main(void) {
  char mark[128];
  int number;
  if (!fgets(mark, sizeof mark, stdin)) return 9;
  mark[strcspn(mark, "\n")] = 0;
  while (scanf("%d", &number) == 1) {
    switch (number) {
      DTERM_CASES
      default: return 9;
    }
    fflush(stdout);
  }
  fflush(NULL);
  _Exit(0);
}
