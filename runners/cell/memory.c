/* What the processes below a cell take: the pages of each that are its own, and the largest share of what is shared. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { DEPTH = 64, PATH = 96 };

struct total {
  uint64_t own, shared;
  uint32_t processes;
};

static ssize_t read_text(const char *path, char *text, size_t room) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  ssize_t size = read(file, text, room - 1);
  close(file);
  if (size >= 0) text[size] = 0;
  return size;
}

static void add(struct total *total, long pid) {
  char path[PATH], text[128];
  snprintf(path, sizeof path, "/proc/%ld/statm", pid);
  unsigned long long size, resident, shared;
  if (read_text(path, text, sizeof text) <= 0 || sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3) return;
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  total->own += (resident - shared) * page;
  if (shared * page > total->shared) total->shared = shared * page;
  total->processes++;
}

static void below(struct total *total, long pid, int depth) {
  char path[PATH];
  snprintf(path, sizeof path, "/proc/%ld/task", pid);
  DIR *tasks = depth < DEPTH ? opendir(path) : NULL;
  if (!tasks) return;
  for (struct dirent *task; (task = readdir(tasks));) {
    if (task->d_name[0] == '.') continue;
    char text[8 << 10], file[PATH + 32];
    snprintf(file, sizeof file, "/proc/%ld/task/%.20s/children", pid, task->d_name);
    if (read_text(file, text, sizeof text) <= 0) continue;
    for (char *at = text, *end; *at; at = end) {
      long child = strtol(at, &end, 10);
      if (end == at) break;
      add(total, child);
      below(total, child, depth + 1);
    }
  }
  closedir(tasks);
}

uint64_t weigh(uint32_t *processes) {
  struct total total = {0};
  below(&total, getpid(), 0);
  *processes = total.processes;
  return total.own + total.shared;
}
