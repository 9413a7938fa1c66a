/*
 * Loaded in front of the C library, this moves the time of day that a program sees. How far is read
 * at each call from the first eight bytes of the file that LARDER_TESTKIT_CLOCK names: a signed
 * number of milliseconds in the machine's own byte order. Whoever writes there moves the clock while
 * the program runs. Clocks that only measure how much time passed are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_ms;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void prepare(void)
{
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("LARDER_TESTKIT_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        offset_ms = page;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    /* Another library's constructor may ask before ours has run. */
    if (!real_clock_gettime)
        prepare();
    int failed = real_clock_gettime(clock, now);
    if (failed || !offset_ms || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t offset = *offset_ms;
    int64_t nanos = now->tv_nsec + offset % 1000 * 1000000;
    now->tv_sec += offset / 1000;
    if (nanos < 0) {
        nanos += 1000000000;
        now->tv_sec -= 1;
    } else if (nanos >= 1000000000) {
        nanos -= 1000000000;
        now->tv_sec += 1;
    }
    now->tv_nsec = nanos;
    return 0;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec time;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now)
{
    struct timespec time;
    if (clock_gettime(CLOCK_REALTIME, &time))
        return (time_t)-1;
    if (now)
        *now = time.tv_sec;
    return time.tv_sec;
}
