/* Counts the calls that change files, and at call N does what a dying machine does.
 *
 * Loaded with LD_PRELOAD, so that it sees the calls of every library in the process; quiet until
 * faults_arm. Kinds:
 *   KILL  SIGKILL instead of call N
 *   TEAR  half of call N, then SIGKILL: half of the bytes of a write; any other call as a whole
 *   FAIL  call N, and if `sticky` every later one too, fails with `error`; removing always works
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, TEAR, FAIL };

static atomic_long count;
static long target;
static int kind, error_number, sticky, no_exchange;
static const char *failed = "";

void faults_arm(int new_kind, long at_call, int error, int is_sticky, int without_exchange) {
    kind = new_kind, target = at_call, error_number = error, sticky = is_sticky;
    no_exchange = without_exchange;
    atomic_store(&count, 0);
}

long faults_count(void) { return atomic_load(&count); }

const char *faults_failed(void) { return failed; } /* the last call that was made to fail */

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What happens to this call: OFF (go on), TEAR (half of it, then die), FAIL (errno is set). */
static int fate(const char *name, int removes) {
    if (kind == OFF || (kind == FAIL && removes)) return OFF;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (kind == FAIL && (number == target || (sticky && number > target))) {
        failed = name;
        errno = error_number;
        return FAIL;
    }
    if (number != target) return OFF;
    if (kind == KILL) die();
    return TEAR;
}

/* Pipes and terminals are not what this is about. */
static int is_file(int fd) {
    struct stat status;
    int before = errno, yes = kind != OFF && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    errno = before;
    return yes;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRITES(name, fd, half, parameters, arguments)      \
    ssize_t name parameters {                              \
        int what = is_file(fd) ? fate(#name, 0) : OFF;            \
        if (what == FAIL) return -1;                       \
        if (what == TEAR) {                                \
            REAL(name) half;                               \
            die();                                         \
        }                                                  \
        return REAL(name) arguments;                       \
    }

WRITES(write, fd, (fd, data, size / 2), (int fd, const void *data, size_t size), (fd, data, size))
WRITES(pwrite, fd, (fd, data, size / 2, at), (int fd, const void *data, size_t size, off_t at),
       (fd, data, size, at))
WRITES(pwrite64, fd, (fd, data, size / 2, at), (int fd, const void *data, size_t size, off64_t at),
       (fd, data, size, at))
WRITES(writev, fd, (fd, parts, parts_n / 2), (int fd, const struct iovec *parts, int parts_n),
       (fd, parts, parts_n))
WRITES(sendfile, out, (out, in, at, size / 2), (int out, int in, off_t *at, size_t size), (out, in, at, size))
WRITES(sendfile64, out, (out, in, at, size / 2), (int out, int in, off64_t *at, size_t size),
       (out, in, at, size))
WRITES(copy_file_range, out, (in, a, out, b, size / 2, flags),
       (int in, off64_t *a, int out, off64_t *b, size_t size, unsigned flags), (in, a, out, b, size, flags))

#define CALL(name, removes, parameters, arguments)         \
    int name parameters {                                  \
        int what = fate(#name, removes);                   \
        if (what == FAIL) return -1;                       \
        int result = REAL(name) arguments;                 \
        if (what == TEAR) die();                           \
        return result;                                     \
    }

CALL(fsync, 0, (int fd), (fd))
CALL(fdatasync, 0, (int fd), (fd))
CALL(ftruncate, 0, (int fd, off_t size), (fd, size))
CALL(ftruncate64, 0, (int fd, off64_t size), (fd, size))
CALL(rename, 0, (const char *from, const char *to), (from, to))
CALL(renameat, 0, (int a, const char *from, int b, const char *to), (a, from, b, to))
CALL(symlink, 0, (const char *to, const char *name), (to, name))
CALL(symlinkat, 0, (const char *to, int folder, const char *name), (to, folder, name))
CALL(mkdir, 0, (const char *name, mode_t mode), (name, mode))
CALL(mkdirat, 0, (int folder, const char *name, mode_t mode), (folder, name, mode))
CALL(unlink, 1, (const char *name), (name))
CALL(unlinkat, 1, (int folder, const char *name, int flags), (folder, name, flags))
CALL(rmdir, 1, (const char *name), (name))

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (no_exchange && flags) {
        errno = EINVAL; /* what file systems say that cannot do it */
        return -1;
    }
    int what = fate("renameat2", 0);
    if (what == FAIL) return -1;
    int result = REAL(renameat2)(a, from, b, to, flags);
    if (what == TEAR) die();
    return result;
}
