/* What the processes below a cell take. Quickly, from /proc/PID/status: anonymous pages, and of shared and file
   pages the largest share; what the kernel adds up to at most is compared with the bound, and only when that is
   over it is each mapping looked at, for its proportional share (Pss). Memfds are counted by what is allocated to
   them, once each, whether they are mapped or not. What a cell cannot see: a memfd that is in a socket on its way,
   and pages of a shared mapping that nobody who lives has touched and whose descriptor is closed. A control group
   sees them. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { PATH = 96, INODES = 1024, DESCRIPTORS_SEEN = 16384, PROCESSES_SEEN = 32768, DEEPEST = 128, MOST_FILES = 100000 };
enum { EXACT_MS = 250, LINES = 4096 }; /* a deadline is not held up by who has many processes with many mappings */

struct total {
  const struct sandbox *sandbox;
  uint64_t own, shared, most_shared, most_file, memfds, exact, unlinked;
  uint32_t processes;
  int64_t until; /* then it is rather estimated too high */
  int descriptors; /* that have been looked at: what is beyond their bound is not counted, and a deadline not held up */
  int known; /* files that have been seen; what is beyond their number is counted as often as it is open */
  ino_t inodes[INODES];
};

typedef void look(struct total *, long pid);

static ssize_t read_text(const char *path, char *text, size_t room) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  ssize_t size = read(file, text, room - 1);
  close(file);
  if (size >= 0) text[size] = 0;
  return size;
}

static uint64_t kilobytes(const char *text, const char *name) {
  const char *at = strstr(text, name);
  return at ? strtoull(at + strlen(name), NULL, 10) << 10 : 0;
}

static bool is_known(const struct total *total, ino_t inode) {
  for (int at = 0; at < total->known; at++)
    if (total->inodes[at] == inode) return true;
  return false;
}

static void add_memfds(struct total *total, long pid) {
  char path[PATH], target[16];
  snprintf(path, sizeof path, "/proc/%ld/fd", pid);
  DIR *entries = opendir(path);
  if (!entries) return;
  for (struct dirent *one; total->descriptors < DESCRIPTORS_SEEN && (one = readdir(entries)); total->descriptors++) {
    struct stat facts;
    if (readlinkat(dirfd(entries), one->d_name, target, sizeof target) < 7 || memcmp(target, "/memfd:", 7)) continue;
    if (fstatat(dirfd(entries), one->d_name, &facts, 0) || is_known(total, facts.st_ino)) continue;
    if (total->known < INODES) total->inodes[total->known++] = facts.st_ino;
    total->memfds += (uint64_t)facts.st_blocks * 512;
  }
  closedir(entries);
}

static void add_quickly(struct total *total, long pid) {
  char path[PATH], text[4096];
  snprintf(path, sizeof path, "/proc/%ld/status", pid);
  if (read_text(path, text, sizeof text) <= 0) return;
  uint64_t shared = kilobytes(text, "\nRssShmem:"), file = kilobytes(text, "\nRssFile:");
  total->own += kilobytes(text, "\nRssAnon:");
  total->shared += shared;
  if (shared > total->most_shared) total->most_shared = shared;
  if (file > total->most_file) total->most_file = file;
  total->processes += (uint32_t)(kilobytes(text, "\nThreads:") >> 10); /* no kilobytes */
  add_memfds(total, pid);
}

/* System V segments and what is in private tmp folders are in `sandbox_weight`, and memfds have been counted. */
static bool is_counted(const struct total *total, const char *name, uint64_t device, ino_t inode) {
  if (!strncmp(name, "/memfd:", 7)) return is_known(total, inode);
  if (!strncmp(name, "/SYSV", 5)) return total->sandbox->got & NAMESPACES;
  for (int at = 0; at < TMPS; at++)
    if (total->sandbox->tmps[at].fd >= 0 && total->sandbox->tmps[at].device == device) return true;
  return false;
}

/* As a rule the kernel can add it up by itself: when nothing is shared that may have been counted. */
static bool add_sum(struct total *total, long pid) {
  char path[PATH], text[2048];
  snprintf(path, sizeof path, "/proc/%ld/smaps_rollup", pid);
  if (read_text(path, text, sizeof text) <= 0 || !strstr(text, "\nPss_Shmem:") || kilobytes(text, "\nPss_Shmem:")) return false;
  total->exact += kilobytes(text, "\nPss:");
  return true;
}

static void add_exactly(struct total *total, long pid) {
  char path[PATH], line[512], name[16];
  bool late = now_ms() > total->until;
  if (!late && add_sum(total, pid)) return;
  snprintf(path, sizeof path, "/proc/%ld/smaps", pid);
  FILE *file = late ? NULL : fopen(path, "re");
  bool counted = false, any = false;
  uint64_t before = total->exact;
  for (int lines = 1; file && fgets(line, sizeof line, file); lines++) {
    if (lines % LINES == 0 && (late = now_ms() > total->until)) break;
    unsigned major, minor;
    unsigned long long inode;
    name[0] = 0;
    any = true;
    if (sscanf(line, "%*x-%*x %*s %*s %x:%x %llu %15s", &major, &minor, &inode, name) >= 3)
      counted = is_counted(total, name, makedev(major, minor), (ino_t)inode);
    else if (!strncmp(line, counted ? "Anonymous:" : "Pss:", counted ? 10 : 4)) /* it may have pages of its own */
      total->exact += strtoull(strchr(line, ':') + 1, NULL, 10) << 10;
  }
  if (file) fclose(file);
  if (any && !late) return;
  total->exact = before;
  char text[4096]; /* not ours to look at so closely, or too much of it */
  snprintf(path, sizeof path, "/proc/%ld/status", pid);
  if (read_text(path, text, sizeof text) <= 0) return;
  total->exact += kilobytes(text, "\nRssAnon:") + kilobytes(text, "\nRssShmem:");
}

/* Nothing of it is deeper than can be looked at: a line of processes is looked at as a crowd is. */
static void below(struct total *total, look *look, long root) {
  static long pids[PROCESSES_SEEN];
  size_t count = 0;
  pids[count++] = root;
  for (size_t done = 0; done < count; done++) {
    char path[PATH];
    snprintf(path, sizeof path, "/proc/%ld/task", pids[done]);
    DIR *tasks = opendir(path);
    if (!tasks) continue;
    for (struct dirent *task; (task = readdir(tasks));) {
      if (task->d_name[0] == '.') continue;
      char text[8 << 10], file[PATH + 32];
      snprintf(file, sizeof file, "/proc/%ld/task/%.20s/children", pids[done], task->d_name);
      if (read_text(file, text, sizeof text) <= 0) continue;
      for (char *at = text, *end; *at && count < PROCESSES_SEEN; at = end) {
        long child = strtol(at, &end, 10);
        if (end == at) break;
        if (*end != ' ') break; /* it may be cut in two */
        look(total, child);
        pids[count++] = child;
      }
    }
    closedir(tasks);
  }
}

uint64_t weigh(const struct sandbox *sandbox, pid_t root, uint64_t bound, uint32_t *processes) {
  static struct total total;
  total = (struct total){.sandbox = sandbox};
  if (root) add_quickly(&total, root);
  below(&total, add_quickly, root ? root : getpid());
  *processes = total.processes;
  if (!bound || total.own + total.shared + total.most_file + total.memfds <= bound)
    return total.own + total.most_file + (total.memfds > total.most_shared ? total.memfds : total.most_shared);
  total.until = now_ms() + EXACT_MS;
  if (root) add_exactly(&total, root);
  below(&total, add_exactly, root ? root : getpid());
  return total.exact + total.memfds;
}

/* Of a file without a name no folder knows. */
static void add_unlinked(struct total *total, long pid) {
  static char target[8 << 10];
  static const char gone[] = " (deleted)";
  char path[PATH];
  snprintf(path, sizeof path, "/proc/%ld/fd", pid);
  DIR *entries = opendir(path);
  if (!entries) return;
  for (struct dirent *one; total->descriptors < DESCRIPTORS_SEEN && (one = readdir(entries)); total->descriptors++) {
    struct stat facts;
    ssize_t length = readlinkat(dirfd(entries), one->d_name, target, sizeof target);
    if (length < (ssize_t)sizeof gone || memcmp(target + length - sizeof gone + 1, gone, sizeof gone - 1)) continue;
    if (!memcmp(target, "/memfd:", 7) || fstatat(dirfd(entries), one->d_name, &facts, 0) || !S_ISREG(facts.st_mode)) continue;
    if (facts.st_nlink || is_counted(total, "", facts.st_dev, facts.st_ino) || is_known(total, facts.st_ino)) continue;
    if (total->known < INODES) total->inodes[total->known++] = facts.st_ino;
    total->unlinked += (uint64_t)facts.st_blocks * 512;
  }
  closedir(entries);
}

uint64_t unlinked_use(const struct sandbox *sandbox, pid_t root) {
  static struct total total;
  total = (struct total){.sandbox = sandbox};
  if (root) add_unlinked(&total, root);
  below(&total, add_unlinked, root ? root : getpid());
  return total.unlinked;
}

static void add_files(int folder, uint64_t bound, uint64_t *bytes, int *left, int deep) {
  int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *entries = copy < 0 ? NULL : fdopendir(copy);
  if (!entries) return close_fd(&copy);
  for (struct dirent *one; (one = readdir(entries)) && *bytes <= bound && *left > 0;) {
    struct stat facts;
    if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
    if (fstatat(folder, one->d_name, &facts, AT_SYMLINK_NOFOLLOW)) continue;
    --*left;
    *bytes += (uint64_t)facts.st_blocks * 512 / (facts.st_nlink && !S_ISDIR(facts.st_mode) ? facts.st_nlink : 1);
    if (!S_ISDIR(facts.st_mode)) continue;
    int inner = deep < DEEPEST ? openat(folder, one->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (inner >= 0) add_files(inner, bound, bytes, left, deep + 1);
    else if (deep >= DEEPEST) *left = 0;
    close_fd(&inner);
  }
  closedir(entries);
}

static int forget_segments(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (int at = 0; at < info->dlpi_phnum; at++) {
    const ElfW(Phdr) *one = &info->dlpi_phdr[at];
    uintptr_t begin = (info->dlpi_addr + one->p_vaddr) & ~(page - 1);
    if (one->p_type == PT_LOAD && !(one->p_flags & PF_W))
      madvise((void *)begin, info->dlpi_addr + one->p_vaddr + one->p_memsz - begin, MADV_DONTNEED);
  }
  return 1; /* the first is ourselves */
}

/* Of a static program most is read once, at its start. */
void forget_text(void) { dl_iterate_phdr(forget_segments, NULL); }

uint64_t disk_use(int folder, bool *over, uint64_t bound) {
  uint64_t bytes = 0;
  if (!bound) bound = UINT64_MAX;
  int left = MOST_FILES;
  add_files(folder, bound, &bytes, &left, 0);
  *over = bytes > bound || left <= 0;
  return bytes;
}
