/* The end of processes: all that a run has started, however it was detached, is our child sooner or later. As PID 1 of a
   namespace we can name all of them at once; as a subreaper we name our children until there are none. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void usage_add(struct usage *usage, const struct rusage *spent) {
  timeradd(&usage->user, &spent->ru_utime, &usage->user);
  timeradd(&usage->system, &spent->ru_stime, &usage->system);
  uint64_t peak = (uint64_t)spent->ru_maxrss << 10;
  if (peak > usage->peak) usage->peak = peak;
}

/* Reap one: 1, 0 when all that is left lives, -1 when nothing is left. */
static int reap_one(pid_t leader, int *status, struct usage *usage, bool *ended) {
  struct rusage spent;
  int how;
  pid_t pid;
  while ((pid = wait4(-1, &how, WNOHANG, &spent)) < 0 && errno == EINTR) {
  }
  if (pid <= 0) return pid < 0 ? -1 : 0;
  usage_add(usage, &spent);
  if (pid == leader) {
    *status = how;
    *ended = true;
  }
  return 1;
}

bool reap(pid_t leader, int *status, struct usage *usage, bool *living) {
  bool ended = false;
  int more = 1;
  for (int count = 0; count < REAPED_AT_ONCE && more > 0; count++) more = reap_one(leader, status, usage, &ended);
  *living = more >= 0;
  return ended;
}

/* Signal each child of ours once. */
static void signal_children(int number) {
  char path[64], text[64 << 10];
  snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  ssize_t size = read(file, text, sizeof text - 1);
  close(file);
  if (size <= 0) return;
  text[size] = 0;
  if (size == (ssize_t)sizeof text - 1) /* the last number may be cut in two: it is there again at the next look */
    while (size > 0 && text[size - 1] != ' ') text[--size] = 0;
  for (char *at = text, *end; *at; at = end) {
    long pid = strtol(at, &end, 10);
    if (end == at) break;
    if (pid > 1) kill((pid_t)pid, number); /* it is our child and not reaped yet: nobody else has its number */
  }
}

void signal_all(int number) {
  if (getpid() == 1)
    kill(-1, number);
  else
    signal_children(number);
}

bool sweep(pid_t leader, int *status, struct usage *usage) {
  const struct timespec moment = {.tv_nsec = 500000};
  int64_t until = now_ms() + SWEEP_MS;
  bool ended = false;
  for (;;) {
    signal_all(SIGKILL);
    int more;
    while ((more = reap_one(leader, status, usage, &ended)) > 0) {
    }
    if (more < 0) return true;
    if (now_ms() > until) return false;
    nanosleep(&moment, NULL);
  }
}
