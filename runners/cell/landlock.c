/* Landlock allows, and knows no "all but": what is near a path that is treated specially is allowed one by one. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NR_CREATE = 444, NR_ADD_RULE, NR_RESTRICT, BY_PATH = 1, PATHS = 4096 };

enum { /* LANDLOCK_ACCESS_FS_*: headers may be older than the kernel */
  EXECUTE = 1 << 0, WRITE_FILE = 1 << 1, READ_FILE = 1 << 2, READ_DIR = 1 << 3, REFER = 1 << 13, TRUNCATE = 1 << 14,
  IOCTL_DEV = 1 << 15,
  OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV,
  READ = EXECUTE | READ_FILE | READ_DIR,
  TCP = 1 << 0 | 1 << 1,       /* bind, connect */
  ABSTRACT = 1 << 0, SIGNALS = 1 << 1, /* scopes */
};

/* What there is to be handled, by version. */
static const uint32_t known[] = {0, 0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff};

struct ruleset {
  uint64_t files, network, scopes;
};

struct rule {
  uint64_t rights;
  int32_t folder;
} __attribute__((packed));

/* What strict reads: the system. What is hidden in it, or private, is not. */
static const char *const systems[] = {
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/etc", "/proc", "/sys", "/nix/store",
    "/gnu/store", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf", "/run/nscd",
    "/run/current-system", "/var/lib/ca-certificates", "/var/lib/alternatives", "/var/cache/fontconfig",
};
static const char *const devices[] = {
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts",
};

int landlock_version(void) {
  long version = syscall(NR_CREATE, NULL, 0, 1);
  return version < 0 ? 0 : (int)version;
}

int landlock_enter(int ruleset) { return syscall(NR_RESTRICT, ruleset, 0) ? errno : 0; }

static bool allow_opened(int ruleset, int fd, uint64_t rights) {
  struct stat facts;
  if (fstat(fd, &facts)) return false;
  struct rule rule = {S_ISDIR(facts.st_mode) ? rights : rights & OF_FILES, fd};
  return !rule.rights || S_ISLNK(facts.st_mode) || !syscall(NR_ADD_RULE, ruleset, BY_PATH, &rule, 0);
}

static bool allow(int ruleset, const char *path, uint64_t rights) {
  int fd = open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return errno == ENOENT || errno == EACCES; /* it is gone, or not ours anyway */
  bool done = allow_opened(ruleset, fd, rights);
  close(fd);
  return done;
}

struct plan {
  const struct sandbox *sandbox;
  int ruleset;
  uint64_t handled;
};

static uint64_t rights_of(const struct plan *plan, const struct mark *mark) {
  switch (mark->kind) {
    case HIDE: case MASK: return 0;
    case SYSTEM: case SHOW: return plan->handled & READ;
    case DEVICE: return plan->handled & (OF_FILES | READ_DIR);
    default: return plan->handled;
  }
}

/* What is covered by a mount is another thing than what was marked. */
static bool counts(const struct plan *plan, const struct mark *mark) {
  unsigned got = plan->sandbox->got;
  return is_hidden(mark->kind) ? !(got & HIDDEN) : mark->kind == TMP ? got & PRIVATE_TMP : mark->kind != COVER;
}

static bool counts_below(const struct plan *plan, const struct mark *mark, const char *path) {
  return counts(plan, mark) && is_below(mark->path, path) && strcmp(mark->path, path);
}

static bool grant(const struct plan *plan, const char *path, uint64_t rights);

static bool grant_marks_below(const struct plan *plan, const char *path, uint64_t rights) {
  bool done = true;
  for (int at = 0; at < plan->sandbox->count; at++) {
    const struct mark *mark = &plan->sandbox->marks[at];
    if (counts_below(plan, mark, path)) done &= grant(plan, mark->path, rights);
  }
  return done;
}

/* Give `rights` to all below a path, but to what is marked there, which has its own. */
static bool grant(const struct plan *plan, const char *path, uint64_t rights) {
  bool less = false, done = true;
  const struct sandbox *all = plan->sandbox;
  for (int at = 0, highest = -1; at < all->count; at++) {
    const struct mark *mark = &all->marks[at];
    if (!counts(plan, mark) || strcmp(mark->path, path) || (int)mark->kind < highest) continue;
    highest = (int)mark->kind;
    rights = rights_of(plan, mark);
  }
  for (int at = 0; at < all->count && !(all->got & HIDDEN); at++) { /* else the mounts see to that */
    const struct mark *mark = &all->marks[at];
    if (counts_below(plan, mark, path)) less |= rights & ~rights_of(plan, mark);
  }
  if (!less && rights) done = allow(plan->ruleset, path, rights);
  DIR *entries = less ? opendir(path) : NULL;
  if (!entries) return grant_marks_below(plan, path, rights) && done; /* of one that is not ours to list, only those */
  for (struct dirent *one; (one = readdir(entries));) {
    char name[PATHS];
    if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
    if (snprintf(name, sizeof name, "%s/%s", path[1] ? path : "", one->d_name) >= (int)sizeof name) continue;
    done &= grant(plan, name, rights);
  }
  closedir(entries);
  return done;
}

static struct ruleset needed(const struct sandbox *sandbox, int version) {
  struct ruleset rules = {0};
  bool restricted = sandbox->wanted & RESTRICTED, alone = sandbox->got & NAMESPACES;
  bool no_network = sandbox->wanted & NO_NETWORK && !(sandbox->got & NO_NETWORK);
  int newest = sizeof known / sizeof *known - 1;
  uint64_t files = known[version < newest ? version : newest];
  if (restricted)
    rules.files = files;
  else if (sandbox->wanted & HIDDEN && !(sandbox->got & HIDDEN))
    rules.files = files & ~(uint64_t)(READ_DIR | IOCTL_DEV);
  if (no_network && version >= 4) rules.network = TCP;
  if (!alone && sandbox->wanted & FILTERED && version >= 6) rules.scopes = SIGNALS;
  if ((no_network || (restricted && !(sandbox->got & NO_NETWORK))) && version >= 6) rules.scopes |= ABSTRACT;
  return rules;
}

int landlock_make(struct sandbox *sandbox) {
  int version = landlock_version();
  const struct ruleset rules = needed(sandbox, version);
  if (!version) errno = ENOSYS;
  if (sandbox->wanted & RESTRICTED && !rules.files) refused(sandbox, RESTRICTED);
  if (sandbox->wanted & HIDDEN && !(sandbox->got & HIDDEN) && !rules.files) refused(sandbox, HIDDEN_BY_LANDLOCK);
  if (!version || !(rules.files | rules.network | rules.scopes)) return errno = ENOMSG, -1;
  size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  struct plan plan = {sandbox, (int)syscall(NR_CREATE, &rules, size, 0), rules.files};
  if (plan.ruleset < 0) return -1;
  bool restricted = sandbox->wanted & RESTRICTED, done = true;
  if (restricted) {
    for (size_t at = 0; at < sizeof systems / sizeof *systems; at++) mark(sandbox, SYSTEM, systems[at]);
    for (size_t at = 0; at < sizeof devices / sizeof *devices; at++) mark(sandbox, DEVICE, devices[at]);
  }
  if (rules.files) done = grant(&plan, "/", restricted ? 0 : rules.files);
  if (rules.files && sandbox->queues >= 0) done &= allow_opened(plan.ruleset, sandbox->queues, rules.files);
  if (!done) return close(plan.ruleset), -1;
  if (restricted) sandbox->got |= RESTRICTED;
  if (sandbox->wanted & HIDDEN && !(sandbox->got & HIDDEN)) sandbox->got |= HIDDEN_BY_LANDLOCK;
  if (rules.scopes & SIGNALS) sandbox->got |= SIGNALS_SCOPED;
  return plan.ruleset;
}
