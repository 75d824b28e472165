/* A line at a time on the emergency console, and what the compiler expects of a C library. */
#include <stdarg.h>

#include "kernel.h"

void check_counted(bool good);

void *memset(void *to, int value, size_t size)
{
    void *at = to;
    asm volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
    void *at = to;
    asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

struct line {
    char text[256];
    unsigned used;
};

static void put(struct line *line, char letter)
{
    if (line->used < sizeof line->text - 1)
        line->text[line->used++] = letter;
}

static void put_number(struct line *line, u64 value, unsigned base)
{
    char digits[20];
    unsigned count = 0;
    do
        digits[count++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (count)
        put(line, digits[--count]);
}

static void put_format(struct line *line, const char *format, va_list values)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(line, *format);
            continue;
        }
        bool wide = *++format == 'l';
        if (wide)
            format++;
        if (*format == 's') {
            for (const char *text = va_arg(values, const char *); *text; text++)
                put(line, *text);
        } else if (*format == 'd') {
            s64 value = wide ? va_arg(values, s64) : va_arg(values, int);
            if (value < 0)
                put(line, '-');
            put_number(line, value < 0 ? -(u64)value : (u64)value, 10);
        } else {
            u64 value = wide ? va_arg(values, u64) : va_arg(values, unsigned);
            put_number(line, value, *format == 'x' ? 16 : 10);
        }
    }
}

static void write_line(struct line *line)
{
    line->text[line->used++] = '\n';
    HYPERCALL(console_io, CONSOLEIO_write, line->used, line->text);
}

void print(const char *format, ...)
{
    struct line line = {.used = 0};
    va_list values;
    va_start(values, format);
    put_format(&line, format, values);
    va_end(values);
    write_line(&line);
}

void check(bool good, const char *what, ...)
{
    struct line line = {.used = 0};
    for (const char *word = good ? "ok: " : "FAILED: "; *word; word++)
        put(&line, *word);
    va_list values;
    va_start(values, what);
    put_format(&line, what, values);
    va_end(values);
    write_line(&line);
    check_counted(good);
}

void check_refused(s64 result, const char *what)
{
    check(result < 0 && result > -4096, "%s: refused (%ld)", what, result);
}

void check_result(s64 result, s64 expected, const char *what)
{
    if (result == expected)
        check(true, "%s: %ld", what, result);
    else
        check(false, "%s: %ld instead of %ld", what, result, expected);
}
