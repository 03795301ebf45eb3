/* The end of processes: all that a run has started, however it was detached, is below us. As PID 1 of a namespace we can
   name all of them at once; as a subreaper we name our children until there are none. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

enum { DEPTH = 64, PATH = 96, AT_ONCE = 16 << 10 };

void usage_add(struct usage *usage, const struct rusage *spent) {
  timeradd(&usage->user, &spent->ru_utime, &usage->user);
  timeradd(&usage->system, &spent->ru_stime, &usage->system);
  uint64_t peak = (uint64_t)spent->ru_maxrss << 10;
  if (peak > usage->peak) usage->peak = peak;
}

/* The numbers in a file of /proc: of more than there is room for the last ones, who are the youngest. A storm leaves tens
   of thousands of dead before those that live. */
static size_t read_pids(const char *path, pid_t *pids, size_t room) {
  static char text[AT_ONCE];
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  size_t count = 0, kept = 0;
  ssize_t size;
  while ((size = read(file, text + kept, sizeof text - 1 - kept)) > 0) {
    text[kept + (size_t)size] = 0;
    char *at = text;
    for (char *end; (end = strchr(at, ' ')); at = end + 1) {
      pid_t pid = atoi(at);
      if (pid > 1) pids[count++ % room] = pid;
    }
    kept = strlen(at); /* a number that has been cut in two */
    memmove(text, at, kept);
  }
  close(file);
  return count < room ? count : room;
}

size_t children_of(pid_t parent, pid_t *pids, size_t room) {
  char path[PATH];
  snprintf(path, sizeof path, "/proc/%d/task/%d/children", parent, parent);
  return read_pids(path, pids, room);
}

size_t children(pid_t *pids, size_t room) { return children_of(getpid(), pids, room); }

void signal_all(int number) {
  static pid_t pids[AT_ONCE / 2];
  if (getpid() == 1) {
    kill(-1, number);
    return;
  }
  size_t count = children(pids, sizeof pids / sizeof *pids);
  for (size_t at = 0; at < count; at++)
    kill(pids[at], number); /* it is our child and not reaped yet: nobody else has its number */
}

/* What follows a process' name in its line of facts; NULL when it is gone. */
static const char *facts_of(pid_t pid, char *text, size_t room) {
  char path[PATH];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t size = file < 0 ? -1 : read(file, text, room - 1);
  close_fd(&file);
  if (size <= 0) return NULL;
  text[size] = 0;
  const char *name_end = strrchr(text, ')');
  return name_end && name_end[1] ? name_end + 2 : NULL;
}

bool is_zombie(pid_t pid) {
  char text[256];
  const char *facts = facts_of(pid, text, sizeof text);
  return !facts || *facts == 'Z' || *facts == 'X';
}

pid_t parent_of(pid_t pid) {
  char text[256];
  const char *facts = facts_of(pid, text, sizeof text);
  return facts && *facts ? (pid_t)strtol(facts + 1, NULL, 10) : 0;
}

static bool among(pid_t pid, const pid_t *pids, size_t count) {
  for (size_t at = 0; at < count; at++)
    if (pids[at] == pid) return true;
  return false;
}

struct walk {
  const pid_t *keep;
  size_t nkeep, found, room;
  pid_t *pids; /* what is found, if it is only to be listed */
};

static void visit(struct walk *walk, pid_t root, int depth) {
  char path[PATH];
  snprintf(path, sizeof path, "/proc/%d/task", root);
  DIR *tasks = depth < DEPTH ? opendir(path) : NULL;
  if (!tasks) return;
  for (struct dirent *task; (task = readdir(tasks));) {
    if (task->d_name[0] == '.') continue;
    char file[PATH + 32];
    pid_t pids[OTHERS];
    snprintf(file, sizeof file, "/proc/%d/task/%.20s/children", root, task->d_name);
    size_t count = read_pids(file, pids, sizeof pids / sizeof *pids);
    for (size_t at = 0; at < count; at++) {
      visit(walk, pids[at], depth + 1);
      if (among(pids[at], walk->keep, walk->nkeep) || is_zombie(pids[at])) continue;
      if (!walk->pids)
        kill(pids[at], SIGKILL);
      else if (walk->found < walk->room)
        walk->pids[walk->found] = pids[at];
      walk->found++;
    }
  }
  closedir(tasks);
}

size_t kill_below(pid_t root, const pid_t *keep, size_t nkeep) {
  struct walk walk = {.keep = keep, .nkeep = nkeep};
  visit(&walk, root, 0);
  return walk.found;
}

size_t list_below(pid_t root, pid_t *pids, size_t room) {
  struct walk walk = {.pids = pids, .room = room};
  visit(&walk, root, 0);
  return walk.found < room ? walk.found : room;
}
