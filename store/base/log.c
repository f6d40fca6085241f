#include "store/base/log.h"

#include "store/base/clock.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048

static const char *const level_names[] = {[LOG_DEBUG] = "debug",
                                          [LOG_INFO] = "info",
                                          [LOG_WARN] = "warn",
                                          [LOG_ERROR] = "error",
                                          [LOG_OFF] = "off"};

static atomic_int threshold = LOG_INFO;
static atomic_bool as_json;
static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static log_fn sink;
static void *sink_data;

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, (int)level);
}

void log_set_json(bool json)
{
    atomic_store(&as_json, json);
}

void log_set_fn(log_fn fn, void *data)
{
    pthread_mutex_lock(&sink_lock);
    sink = fn;
    sink_data = data;
    pthread_mutex_unlock(&sink_lock);
}

bool log_level_parse(const char *s, enum log_level *out)
{
    for (int i = LOG_DEBUG; i <= LOG_OFF; i++) {
        if (strcmp(s, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

/* JSON string escaping; control characters become spaces in text lines so
 * that no input can forge a line. */
static size_t escape(char *out, size_t size, const char *in, bool json)
{
    size_t n = 0;

    for (; *in != '\0' && n + 3 < size; in++) {
        unsigned char c = (unsigned char)*in;
        if (json && (c == '"' || c == '\\')) {
            out[n++] = '\\';
        }
        out[n++] = c < 0x20 || c == 0x7f ? ' ' : (char)c;
    }
    out[n] = '\0';
    return n;
}

static void write_line(enum log_level level, const char *area, const char *text)
{
    char line[LINE_MAX_BYTES + 256], when[CLOCK_RFC3339_SIZE];
    char safe[LINE_MAX_BYTES];
    bool json = atomic_load(&as_json);
    int n;

    clock_format(clock_wall_ms(), when);
    (void)escape(safe, sizeof safe, text, json);
    n = snprintf(line, sizeof line,
                 json ? "{\"time\":\"%s\",\"level\":\"%s\",\"area\":\"%s\","
                        "\"text\":\"%s\"}\n"
                      : "%s %-5s %s: %s\n",
                 when, level_names[level], area, safe);
    if (n > 0) {
        size_t len = (size_t)n < sizeof line ? (size_t)n : sizeof line - 1;
        ssize_t rc = write(STDERR_FILENO, line, len);
        (void)rc;
    }
}

void log_line(enum log_level level, const char *area, const char *fmt, ...)
{
    char text[LINE_MAX_BYTES];
    va_list ap;
    log_fn fn;
    void *data;

    if ((int)level < atomic_load_explicit(&threshold, memory_order_relaxed)) {
        return;
    }
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&sink_lock);
    fn = sink;
    data = sink_data;
    pthread_mutex_unlock(&sink_lock);
    if (fn != NULL) {
        fn(data, level, area, text);
    } else {
        write_line(level, area, text);
    }
}
