/* What a cell sees of the file system, in a mount namespace of its own: private tmp folders, what is hidden
   covered, what is shown read-only. Steps are data: each marked path is one, and those above come before those
   below them, so that the deepest holds. What is to be shown is opened before anything is covered. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { NR_OPENAT2 = 437, NR_MOUNT_SETATTR = 442, PATHS = 4096, RESOLVE_NO_LINKS = 4 };
enum { NOTHING_SPECIAL = MS_NOSUID | MS_NODEV | MS_NOEXEC };

static const char *const tmp_folders[TMPS] = {"/tmp", "/var/tmp", "/dev/shm"};
/* Root needs no privilege to change the kernel's settings here; what it writes there acts outside of its namespaces. */
static const char *const settings[] = {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs",
                                       "/proc/acpi", "/proc/scsi", "/sys"};

static const char *named(int fd) {
  static char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return path;
}

/* A path of which nothing is a link, as a descriptor. */
static int pin(const char *path) {
  uint64_t how[3] = {O_PATH | O_CLOEXEC | O_NOFOLLOW, 0, RESOLVE_NO_LINKS};
  int fd = (int)syscall(NR_OPENAT2, AT_FDCWD, path, how, sizeof how);
  return fd < 0 && errno != ENOENT && errno != ELOOP ? open(path, O_PATH | O_CLOEXEC | O_NOFOLLOW) : fd;
}

static bool is_folder(int fd) {
  struct stat facts;
  return !fstat(fd, &facts) && S_ISDIR(facts.st_mode);
}

/* An older kernel does not do what is mounted below too, and wants to be told the flags that a mount has. */
static bool make_read_only(int fd, bool recursively) {
  uint64_t attributes[4] = {MS_RDONLY};
  unsigned how = AT_EMPTY_PATH | (recursively ? AT_RECURSIVE : 0);
  if (!syscall(NR_MOUNT_SETATTR, fd, "", how, attributes, sizeof attributes)) return true;
  struct statvfs facts;
  if (fstatvfs(fd, &facts)) return false;
  unsigned long kept = facts.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME);
  if (facts.f_flag & ST_RELATIME) kept |= MS_RELATIME;
  return !mount(NULL, named(fd), NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | kept, NULL);
}

/* Mount something over what is at a path: a descriptor of it. */
static int cover(const char *path, const char *source, const char *type, unsigned long flags, const char *options) {
  int target = pin(path);
  if (target < 0) return -1;
  char source_path[64] = "";
  if (source) snprintf(source_path, sizeof source_path, "%s", source); /* it may be what `named` has just said */
  int failed = mount(source ? source_path : type, named(target), type, flags, options);
  close(target);
  return failed ? -1 : pin(path);
}

/* What is below a cover needs a place to be mounted at. */
static bool make_place(const char *path, bool folder) {
  char whole[PATHS];
  if (snprintf(whole, sizeof whole, "%s", path) >= (int)sizeof whole) return false;
  for (char *at = strchr(whole + 1, '/'); at; at = strchr(at + 1, '/')) {
    *at = 0;
    if (mkdir(whole, 0755) && errno != EEXIST) return false;
    *at = '/';
  }
  if (!access(whole, F_OK)) return true;
  if (folder) return !mkdir(whole, 0755);
  int file = open(whole, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
  if (file >= 0) close(file);
  return file >= 0;
}

/* Where it was asked for by way of a link that is covered now. */
static void link_to(const struct mark *mark) {
  char above[PATHS];
  if (!strcmp(mark->given, mark->path) || !access(mark->given, F_OK)) return;
  snprintf(above, sizeof above, "%s", mark->given);
  char *name = strrchr(above, '/');
  if (!name || name == above) return;
  *name = 0;
  if (!make_place(above, true) || symlink(mark->path, mark->given)) errno = 0; /* it is there, under its own name */
}

/* It is emptied by what has been opened here: by its path it may be the machine's own, which is shown over it. */
static bool mount_tmp(struct sandbox *sandbox, struct mark *mark) {
  char options[96];
  struct stat facts;
  unsigned long long bytes = sandbox->tmp_bytes;
  struct tmp *tmp = sandbox->tmps;
  while (tmp->fd >= 0) tmp++; /* there are as many as marks of this kind */
  snprintf(options, sizeof options, "mode=1777,size=%llu,nr_inodes=%llu", bytes, (bytes >> 12) + 1024);
  mark->cover = cover(mark->path, NULL, "tmpfs", MS_NOSUID | MS_NODEV, options);
  if (mark->cover < 0) return false;
  tmp->fd = openat(mark->cover, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (tmp->fd < 0 || fstat(tmp->fd, &facts)) return false;
  tmp->device = facts.st_dev;
  return true;
}

static bool hide(struct mark *mark, int nothing) {
  if (mark->kind == COVER && !make_place(mark->path, true)) return false;
  int fd = pin(mark->path);
  if (fd < 0) return true; /* what is above is covered, or it is not there */
  bool folder = is_folder(fd);
  close(fd);
  if (folder)
    mark->cover = cover(mark->path, NULL, "tmpfs", NOTHING_SPECIAL, "mode=0555,size=64k,nr_inodes=1024");
  else
    mark->cover = cover(mark->path, named(nothing), NULL, MS_BIND, NULL);
  return mark->cover >= 0;
}

static bool show(struct mark *mark) {
  if (mark->source < 0) return true; /* it has just gone, or is not ours to reach */
  if (!make_place(mark->path, is_folder(mark->source))) return false;
  int there = cover(mark->path, named(mark->source), NULL, MS_BIND | MS_REC, NULL);
  bool done = there >= 0 && (mark->kind != SHOW || make_read_only(there, true));
  if (there >= 0) close(there);
  return done;
}

/* Filled by now: nothing is to be added to what covers. */
static bool close_cover(struct mark *mark) {
  bool done = mark->cover < 0 || mark->kind == TMP || make_read_only(mark->cover, false);
  close_fd(&mark->cover);
  return done;
}

static int depth(const char *path) {
  int count = 0;
  for (; *path; path++) count += *path == '/';
  return count;
}

static int earlier(const void *one, const void *other) {
  const struct mark *a = one, *b = other;
  int deeper = depth(a->path) - depth(b->path), name = strcmp(a->path, b->path);
  return deeper ? deeper : name ? name : (int)a->kind - (int)b->kind;
}

/* Of two marks for one path the first is not even mounted: it would come along with what is shown. */
static bool is_overruled(const struct sandbox *sandbox, int at) {
  return at + 1 < sandbox->count && !strcmp(sandbox->marks[at].path, sandbox->marks[at + 1].path);
}

/* /tmp itself is to hold nothing of ours but what is mounted, so that it can be emptied and nothing in it be
   renamed: what is shown further below lies in a folder that is a cover. */
static void mark_tmp(struct sandbox *sandbox) {
  for (int at = 0; at < TMPS; at++) mark(sandbox, TMP, tmp_folders[at]);
  int count = sandbox->count;
  for (int at = 0; at < count; at++)
    for (int inner = 0; inner < count; inner++) {
      const char *tmp = sandbox->marks[at].path;
      char *path = sandbox->marks[inner].path, *end;
      if (sandbox->marks[at].kind != TMP || !is_shown(sandbox->marks[inner].kind) || !is_below(path, tmp)) continue;
      if (!path[strlen(tmp)] || !(end = strchr(path + strlen(tmp) + 1, '/'))) continue;
      *end = 0;
      mark(sandbox, COVER, path);
      *end = '/';
    }
}

/* With what is mounted in them. */
static void count_inodes(struct sandbox *sandbox) {
  struct statfs room;
  for (int at = 0; at < TMPS; at++)
    if (sandbox->tmps[at].fd >= 0 && !fstatfs(sandbox->tmps[at].fd, &room))
      sandbox->tmps[at].inodes = room.f_files - room.f_ffree;
}

/* Under the new /proc, where nobody sees it: the folder of message queues, and a file that nobody may open. */
static int mount_hidden(struct sandbox *sandbox) {
  int nothing = -1;
  if (!mount("mqueue", "/proc", "mqueue", NOTHING_SPECIAL, NULL))
    sandbox->queues = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!mount("tmpfs", "/proc", "tmpfs", NOTHING_SPECIAL, "mode=0555,size=64k,nr_inodes=16")) {
    nothing = open("/proc/nothing", O_CREAT | O_EXCL | O_RDONLY | O_CLOEXEC, 0);
    close_fd(&nothing);
    nothing = open("/proc/nothing", O_PATH | O_CLOEXEC);
  }
  if (mount("proc", "/proc", "proc", NOTHING_SPECIAL, NULL)) _exit(72);
  if (!access("/dev/mqueue", F_OK)) mount("mqueue", "/dev/mqueue", "mqueue", NOTHING_SPECIAL, NULL);
  return nothing;
}

/* The folder, in this namespace, and still the one that was opened at first. */
static bool reopen_folder(struct sandbox *sandbox) {
  struct stat before, after;
  int fd = open(sandbox->folder_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0 || fstat(sandbox->folder, &before) || fstat(fd, &after)) return false;
  if (before.st_dev != after.st_dev || before.st_ino != after.st_ino) return errno = ESTALE, false;
  close(sandbox->folder);
  sandbox->folder = fd;
  return true;
}

bool mounts_make(struct sandbox *sandbox) {
  int nothing = mount_hidden(sandbox);
  for (size_t at = 0; at < sizeof settings / sizeof *settings && sandbox->wanted & FILTERED && !geteuid(); at++)
    mark(sandbox, SHOW, settings[at]);
  if (sandbox->wanted & PRIVATE_TMP) mark_tmp(sandbox);
  qsort(sandbox->marks, (size_t)sandbox->count, sizeof *sandbox->marks, earlier);
  for (int at = 0; at < sandbox->count; at++)
    if (is_shown(sandbox->marks[at].kind)) sandbox->marks[at].source = pin(sandbox->marks[at].path);
  sandbox->got |= HIDDEN | (sandbox->wanted & PRIVATE_TMP);
  for (int at = 0; at < sandbox->count; at++) {
    struct mark *mark = &sandbox->marks[at];
    if (is_overruled(sandbox, at)) continue;
    if (mark->kind == TMP && !mount_tmp(sandbox, mark)) refused(sandbox, PRIVATE_TMP);
    if ((is_hidden(mark->kind) || mark->kind == COVER) && !hide(mark, nothing)) refused(sandbox, HIDDEN);
    if (is_shown(mark->kind) && !show(mark)) refused(sandbox, HIDDEN);
  }
  for (int at = 0; at < sandbox->count; at++) /* of two marks for one path each may be by way of a link */
    if (is_shown(sandbox->marks[at].kind) && sandbox->marks[at].source >= 0) link_to(&sandbox->marks[at]);
  for (int at = 0; at < sandbox->count; at++) {
    if (!close_cover(&sandbox->marks[at])) refused(sandbox, HIDDEN);
    close_fd(&sandbox->marks[at].source);
  }
  close_fd(&nothing);
  count_inodes(sandbox);
  return reopen_folder(sandbox);
}
