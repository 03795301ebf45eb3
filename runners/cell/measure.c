/* What one process has taken so far. */
#define _GNU_SOURCE
#include "cell.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *read_of(pid_t pid, const char *name, char *text, size_t room) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t size = file < 0 ? -1 : read(file, text, room - 1);
  close_fd(&file);
  text[size < 0 ? 0 : size] = 0;
  return text;
}

static uint64_t kilobytes_after(const char *text, const char *name) {
  const char *at = strstr(text, name);
  return at ? strtoull(at + strlen(name), NULL, 10) << 10 : 0;
}

struct spent measure(pid_t pid) {
  struct spent spent = {.processes = 1};
  char text[4096];
  unsigned long long user, system, user_of_dead, system_of_dead;
  uint64_t tick_us = 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
  const char *after_name = strrchr(read_of(pid, "stat", text, sizeof text), ')');
  if (after_name && sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %llu %llu", &user, &system,
                           &user_of_dead, &system_of_dead) == 4) {
    spent.user_us = (user + user_of_dead) * tick_us;
    spent.system_us = (system + system_of_dead) * tick_us;
  }
  read_of(pid, "status", text, sizeof text);
  spent.size = kilobytes_after(text, "\nVmRSS:");
  spent.peak = kilobytes_after(text, "\nVmHWM:");
  return spent;
}
