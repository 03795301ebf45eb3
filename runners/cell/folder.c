/* Empties a folder by descriptors: no name is looked up twice and no link is followed. What goes deeper than LEVELS is
   reached one level at a time, and left by "..", which is compared with where we came from: a tree of any depth needs a few
   descriptors. What lives beside may move a folder away while we are in it: we would come up somewhere else. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { DEEPEST = 1 << 16, LEVELS = 4 };

struct place {
  dev_t device;
  ino_t inode;
};

static struct place place_of(int folder) {
  struct stat facts;
  if (fstat(folder, &facts)) return (struct place){0, 0};
  return (struct place){facts.st_dev, facts.st_ino};
}

static bool same(struct place one, struct place other) { return one.device == other.device && one.inode == other.inode; }

/* The folders above the one that we are in, the first one first. */
struct way {
  struct place *places;
  size_t count, room;
};

static bool remember(struct way *way, struct place place) {
  if (way->count == way->room) {
    size_t room = way->room * 2 + 16;
    struct place *more = realloc(way->places, room * sizeof *more);
    if (!more) return false;
    way->places = more;
    way->room = room;
  }
  way->places[way->count++] = place;
  return true;
}

bool names_have(const struct names *keep, const char *name) {
  if (!keep) return false;
  for (size_t at = 0; at < keep->size; at += strlen(keep->text + at) + 1)
    if (!strcmp(keep->text + at, name)) return true;
  return false;
}

int folder_open(int above, const char *name) {
  int fd = openat(above, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 || errno != EACCES) return fd;
  int there = openat(above, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC); /* ours, or of a process that ran as us */
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", there);
  if (there >= 0 && !chmod(path, 0700)) fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  close_fd(&there);
  return fd;
}

unsigned folder_removed;

static bool removed(int folder, const char *name, int flags) {
  if (unlinkat(folder, name, flags)) return false;
  folder_removed++;
  return true;
}

/* Remove what is in a folder and LEVELS below it, each folder in one pass: one that was looked through from its beginning
   for each folder that is in it would take for ever. The descriptor of a folder in it that goes deeper, which ends the pass;
   -1 when there is none, -2 when something cannot be removed, and the rest is. */
static int unlink_files(int folder, const struct names *keep, int levels) {
  fchmod(folder, 0700);
  int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  DIR *entries = copy < 0 ? NULL : fdopendir(copy);
  if (!entries) {
    close_fd(&copy);
    return -2;
  }
  int deeper = -1;
  bool failed = false;
  for (struct dirent *one; deeper < 0 && (one = readdir(entries));) {
    if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..") || names_have(keep, one->d_name)) continue;
    if (removed(folder, one->d_name, 0) || errno == ENOENT) continue; /* who lives beside may have removed it */
    if (errno != EISDIR && errno != EPERM) {
      failed = true;
      continue;
    }
    if (removed(folder, one->d_name, AT_REMOVEDIR) || errno == ENOENT) continue;
    int inner = -1;
    if (errno == ENOTEMPTY || errno == EEXIST || errno == EACCES) inner = folder_open(folder, one->d_name);
    if (inner < 0) {
      failed |= errno != ENOENT;
      continue;
    }
    int left = levels ? unlink_files(inner, NULL, levels - 1) : inner;
    bool more = left >= 0;
    failed |= left == -2;
    if (left == -1 && unlinkat(folder, one->d_name, AT_REMOVEDIR)) {
      more = errno == ENOTEMPTY || errno == EEXIST; /* somebody lives beside */
      failed |= !more && errno != ENOENT;
    }
    if (levels) close_fd(&left);
    if (more) deeper = inner;
    else close_fd(&inner);
  }
  closedir(entries);
  return deeper >= 0 ? deeper : failed ? -2 : -1;
}

bool folder_names(int folder, struct names *into) {
  free(into->text);
  *into = (struct names){0};
  int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *entries = copy < 0 ? NULL : fdopendir(copy);
  if (!entries) {
    close_fd(&copy);
    return false;
  }
  bool whole = true;
  for (struct dirent *one; whole && (one = readdir(entries));) {
    if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
    size_t length = strlen(one->d_name) + 1;
    char *more = realloc(into->text, into->size + length);
    whole = more != NULL;
    if (!whole) break;
    memcpy(more + into->size, one->d_name, length);
    into->text = more;
    into->size += length;
  }
  closedir(entries);
  return whole;
}

/* A folder that is used again has nothing written on it either. */
bool folder_bare(int folder) {
  char names[4096];
  ssize_t size = flistxattr(folder, names, sizeof names);
  if (size < 0) return errno == ENOTSUP;
  bool done = true;
  for (const char *at = names; at < names + size; at += strlen(at) + 1)
    if (!strncmp(at, "user.", 5) || !strncmp(at, "system.posix_acl", 16)) done &= !fremovexattr(folder, at);
  return done;
}

bool folder_empty(int folder, const struct names *keep) {
  struct way way = {0};
  bool done = false;
  fchmod(folder, 0700);
  int at = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  for (int steps = 0; at >= 0 && steps < DEEPEST * 4; steps++) {
    int next = unlink_files(at, way.count ? NULL : keep, LEVELS);
    if (next == -2) break;
    if (next >= 0) {
      if (!remember(&way, place_of(at))) steps = DEEPEST * 4;
    } else if (!way.count) {
      done = true;
      break;
    } else {
      next = openat(at, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      if (next >= 0 && !same(place_of(next), way.places[--way.count])) close_fd(&next);
    }
    close(at);
    at = next;
  }
  close_fd(&at);
  free(way.places);
  return folder_bare(folder) && done;
}
