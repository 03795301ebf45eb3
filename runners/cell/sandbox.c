/* What a cell keeps what it runs from. All that is inherited is done once, to the cell itself, so that a run pays
   nothing for it; what must not bind the cell is done between the fork and the exec. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

/* What root may still do: its own files and users, and the network as everybody. */
static const int kept_capabilities[] = {
    CAP_CHOWN,   CAP_DAC_OVERRIDE,     CAP_FOWNER,  CAP_FSETID,     CAP_KILL,    CAP_SETGID,      CAP_SETUID,
    CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_SETFCAP, CAP_AUDIT_WRITE,
};

/* Root reads files from the disk that they are on, whatever hides them: no disk, then, nor what leads to one. */
static const char *const raw[] = {"/dev/mem", "/dev/kmem", "/dev/port", "/dev/sg[0-9]*", "/dev/bsg/*", "/dev/raw/*",
                                  "/dev/mtd*", "/dev/ng[0-9]*", "/dev/*", "/dev/*/*"};
enum { RAW = sizeof raw / sizeof *raw, CERTAINLY = RAW - 2 };

/* --- wishes */

bool is_below(const char *path, const char *above) {
  size_t length = strlen(above);
  if (length == 1) return true; /* the root */
  return !strncmp(path, above, length) && (path[length] == '/' || !path[length]);
}

bool mark(struct sandbox *sandbox, enum kind_of_mark kind, const char *given) {
  char *path = realpath(given, NULL);
  if (!path) return false;
  bool by_link = is_shown(kind) && strcmp(given, path); /* then it is to be there by that name too */
  for (int at = 0; at < sandbox->count && !by_link; at++)
    if (sandbox->marks[at].kind == kind && !strcmp(sandbox->marks[at].path, path)) {
      free(path);
      return true;
    }
  if (sandbox->count == sandbox->room) {
    int room = sandbox->room * 2 + 64;
    struct mark *more = realloc(sandbox->marks, (size_t)room * sizeof *more);
    if (!more) _exit(70);
    sandbox->marks = more;
    sandbox->room = room;
  }
  sandbox->marks[sandbox->count++] = (struct mark){kind, is_shown(kind) ? given : NULL, path, -1, -1};
  return true;
}

void refused(struct sandbox *sandbox, enum wish wish) {
  sandbox->got &= ~(unsigned)wish;
  for (int bit = 0; bit < 16; bit++)
    if (wish == 1U << bit) sandbox->refused[bit] = errno;
}

static bool number(const char *text, uint64_t most, uint64_t *into) {
  char *end;
  errno = 0;
  unsigned long long value = strtoull(text, &end, 10);
  if (errno || *text < '0' || *text > '9' || *end || value > most) return false;
  *into = value;
  return true;
}

static bool number_32(const char *text, uint32_t *into) {
  uint64_t value;
  bool right = number(text, UINT32_MAX - 1, &value);
  if (right) *into = (uint32_t)value;
  return right;
}

static bool user(const char *text, struct sandbox *sandbox) {
  char first[16];
  const char *colon = strchr(text, ':');
  if (!colon || colon - text >= (int)sizeof first) return false;
  memcpy(first, text, (size_t)(colon - text));
  first[colon - text] = 0;
  return number_32(first, &sandbox->user) && number_32(colon + 1, &sandbox->group);
}

int sandbox_option(struct sandbox *sandbox, const char *name, const char *value) {
  static const struct {
    const char *name;
    unsigned wish;
    int kind; /* of mark, -1: no path */
    bool valued;
  } options[] = {
      {"--namespaces", NAMESPACES, -1, false},     {"--no-network", NO_NETWORK, -1, false},
      {"--restrict", RESTRICTED, -1, false},       {"--filter", FILTERED, -1, false},
      {"--hide", HIDDEN, HIDE, true},              {"--show", HIDDEN, SHOW, true},
      {"--read", HIDDEN, SHOW, true},              {"--write", HIDDEN, WRITE, true},
      {"--private-tmp", PRIVATE_TMP, -1, true},    {"--user", OTHER_USER, -1, true},
      {"--max-pids", PROCESSES_BOUNDED, -1, true}, {"--max-disk", 0, -1, true},
      {"--oom", 0, -1, true},
  };
  for (size_t at = 0; at < sizeof options / sizeof *options; at++) {
    if (strcmp(options[at].name, name)) continue;
    if (options[at].valued && !value) return -1;
    sandbox->wanted |= options[at].wish;
    uint64_t oom = 0, *bytes = &sandbox->tmp_bytes;
    bool right = true;
    if (options[at].kind >= 0) mark(sandbox, (enum kind_of_mark)options[at].kind, value);
    else if (options[at].wish == PRIVATE_TMP) right = number(value, INT64_MAX, bytes) && *bytes;
    else if (options[at].wish == OTHER_USER) right = user(value, sandbox);
    else if (options[at].wish == PROCESSES_BOUNDED) right = number_32(value, &sandbox->max_pids);
    else if (!strcmp(name, "--max-disk")) right = number(value, UINT64_MAX, &sandbox->max_disk);
    else if (!strcmp(name, "--oom")) right = number(value, 1000, &oom), sandbox->oom = (int)oom;
    return !right ? -1 : options[at].valued ? 2 : 1;
  }
  return 0;
}

/* --- once */

static void be_first_to_go(int adjustment) {
  char text[16];
  int size = snprintf(text, sizeof text, "%d", adjustment);
  int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (file < 0) return;
  if (write(file, text, (size_t)size) < 0) errno = 0; /* it is higher than that already */
  close(file);
}

/* What a program gets at its exec: as root, no more than the bounding set. What the cell has itself is not touched. */
static bool cut_capabilities(bool all) {
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets)) return false;
  bool may = sets[0].effective & 1U << CAP_SETPCAP;
  sets[0].inheritable = sets[1].inheritable = 0;
  if (syscall(SYS_capset, &header, sets)) return false;
  for (int number = 0; prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; number++) {
    bool kept = false;
    for (size_t at = 0; at < sizeof kept_capabilities / sizeof *kept_capabilities; at++)
      kept |= !all && kept_capabilities[at] == number;
    if (!kept && may && prctl(PR_CAPBSET_DROP, number, 0, 0, 0)) return false;
  }
  return may || getuid() != 0; /* who is not root has none after an exec anyway */
}

/* Since 5.14 processes are counted by user namespace, before by user all over the machine. */
static bool counted_apart(const struct sandbox *sandbox) {
  struct utsname kernel;
  int major = 0, minor = 0;
  if (sandbox->got & OTHER_USER) return true;
  if (!(sandbox->got & USER_NAMESPACE) || uname(&kernel)) return false;
  return sscanf(kernel.release, "%d.%d", &major, &minor) == 2 && major * 1000 + minor >= 5014;
}

static bool restrict_files(struct sandbox *sandbox) {
  sandbox->landlock = landlock_make(sandbox);
  if (sandbox->landlock < 0 || !(sandbox->got & NAMESPACES)) return true;
  int failed = landlock_enter(sandbox->landlock); /* in its namespaces nothing can harm the cell: once is enough */
  close_fd(&sandbox->landlock);
  return !failed;
}

static void hide_devices(struct sandbox *sandbox) {
  for (int at = 0; at < RAW; at++) {
    glob_t found = {0};
    if (glob(raw[at], 0, NULL, &found)) continue;
    for (size_t one = 0; one < found.gl_pathc; one++) {
      struct stat facts;
      if (!stat(found.gl_pathv[one], &facts) && (at < CERTAINLY || S_ISBLK(facts.st_mode)))
        mark(sandbox, MASK, found.gl_pathv[one]);
    }
    globfree(&found);
  }
}

/* Remember what hides. */
static void guard(struct sandbox *sandbox) {
  sandbox->guards = calloc((size_t)sandbox->count + 1, sizeof *sandbox->guards);
  for (int at = 0; sandbox->guards && at < sandbox->count; at++) {
    const struct mark *mark = &sandbox->marks[at];
    struct stat facts;
    if (mark->kind != HIDE || stat(mark->path, &facts)) continue;
    char *path = strdup(mark->path);
    if (path) sandbox->guards[sandbox->guarded++] = (struct guard){path, facts.st_dev, facts.st_ino};
  }
}

static bool still_hidden(const struct sandbox *sandbox) {
  for (int at = 0; at < sandbox->guarded; at++) {
    struct stat facts;
    const struct guard *one = &sandbox->guards[at];
    if (!stat(one->path, &facts) && (facts.st_dev != one->device || facts.st_ino != one->inode)) return false;
  }
  return true;
}

static void forget_marks(struct sandbox *sandbox) {
  for (int at = 0; at < sandbox->count; at++) free(sandbox->marks[at].path);
  free(sandbox->marks);
  free(sandbox->folder_path);
  sandbox->marks = NULL;
  sandbox->folder_path = NULL;
  sandbox->count = sandbox->room = 0;
}

static bool enter(struct sandbox *sandbox) {
  umask(022);
  mark(sandbox, PRIVATE, sandbox->folder_path);
  if (sandbox->wanted & OTHER_USER && !geteuid() && !fchown(sandbox->folder, sandbox->user, sandbox->group))
    sandbox->got |= OTHER_USER;
  if (sandbox->wanted & FILTERED && !geteuid() && !(sandbox->got & OTHER_USER)) hide_devices(sandbox);
  isolate(sandbox);
  if (sandbox->oom >= 0) be_first_to_go(sandbox->oom); /* before it is not dumpable, and this not its own any more */
  prctl(PR_SET_DUMPABLE, 0);
  if (sandbox->got & NAMESPACES && !mounts_make(sandbox)) return false;
  if (sandbox->got & HIDDEN) guard(sandbox);
  if (sandbox->wanted & PROCESSES_BOUNDED && counted_apart(sandbox)) sandbox->got |= PROCESSES_BOUNDED;
  bool sockets = sandbox->wanted & NO_NETWORK && !(sandbox->got & NO_NETWORK);
  bool cut = !(sandbox->wanted & FILTERED) || cut_capabilities(sandbox->got & USER_NAMESPACE);
  if (sandbox->wanted & (FILTERED | HIDDEN | RESTRICTED | NO_NETWORK)) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (!restrict_files(sandbox)) return false;
  if (!(sandbox->wanted & FILTERED) && !sockets) return true;
  if (filter_enter(sandbox) && cut)
    sandbox->got |= (sandbox->wanted & FILTERED) | (sockets ? NO_NETWORK_FILTERED : 0);
  else
    refused(sandbox, sandbox->wanted & FILTERED ? FILTERED : NO_NETWORK_FILTERED);
  return true;
}

bool sandbox_enter(struct sandbox *sandbox) {
  bool entered = enter(sandbox);
  forget_marks(sandbox);
  return entered;
}

/* --- each run. By system calls: the C library would have all threads follow, and this one has borrowed its memory. */

static int limit(int what, uint64_t most) {
  const struct rlimit both = {most, most};
  return setrlimit(what, &both) ? errno : 0;
}

int sandbox_confine(const struct sandbox *sandbox) {
  int error = still_hidden(sandbox) ? 0 : ESTALE;
  if (!error && sandbox->max_disk) error = limit(RLIMIT_FSIZE, sandbox->max_disk);
  if (!error && sandbox->got & PROCESSES_BOUNDED)
    error = limit(RLIMIT_NPROC, sandbox->max_pids + (sandbox->got & USER_NAMESPACE ? 1 : 0)); /* the cell is one too */
  if (!error && sandbox->got & OTHER_USER &&
      (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, sandbox->group, sandbox->group, sandbox->group) ||
       syscall(SYS_setresuid, sandbox->user, sandbox->user, sandbox->user)))
    error = errno;
  if (!error && sandbox->landlock >= 0) error = landlock_enter(sandbox->landlock);
  return error;
}

bool sandbox_empty(const struct sandbox *sandbox) { return !(sandbox->got & NAMESPACES) || tmp_empty(sandbox); }

uint64_t sandbox_weight(const struct sandbox *sandbox) {
  return sandbox->got & NAMESPACES ? tmp_weight(sandbox) : 0;
}

bool sandbox_own(const struct sandbox *sandbox, int folder) {
  return !(sandbox->got & OTHER_USER) || !fchown(folder, sandbox->user, sandbox->group);
}

bool sandbox_disk_full(const struct sandbox *sandbox, int folder, unsigned runs, uint64_t more) {
  bool over = false;
  uint64_t bound = sandbox->max_disk > UINT64_MAX / runs ? UINT64_MAX : sandbox->max_disk * runs;
  if (bound && more < bound) disk_use(folder, &over, bound - more);
  return over || (bound && more > bound);
}

void sandbox_keep(struct sandbox *sandbox, bool keep) { tmp_keep(sandbox, keep); }
