/* The loop: the gateway, what is dead, the pipes of the runs, and the time. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { CONTROL, SIGNALS, HOST_SOCKET, FIXED, PER_RUN = 5 };

struct polled {
  struct pollfd *fds;
  size_t count, room;
};

/* False when the gateway is gone. */
static bool hear(struct cell *cell) {
  static struct message message;
  int read = message_read(cell->control, &message);
  if (read == 0) return false;
  if (read < 0) return true;
  struct run *run = run_find(cell, message.head.run);
  switch ((enum kind)message.head.kind) {
    case RUN: run_begin(cell, &message); break;
    case FEED: if (run) run_feed(run, &message); break;
    case STOP: if (run) run_stop(cell, run, STOPPED); break;
    case KILL: if (run) run_kill(run, KILLED); break;
    case GO_ON: if (run) run_go_on(run); break;
    case REST: if (run) run_rest(cell, run, message.head.flags & KEEP); break;
    case MEASURE: if (run) run_measure(cell, run); break;
    case LEAVE: cell->may_leave = true; break;
    default: break; /* what a later gateway may say */
  }
  message_release(&message);
  return true;
}

static bool make_room(struct polled *polled, size_t wanted) {
  if (wanted <= polled->room) return true;
  struct pollfd *more = realloc(polled->fds, wanted * sizeof *more);
  if (!more) return false;
  polled->fds = more;
  polled->room = wanted;
  return true;
}

static void gather(const struct cell *cell, struct polled *polled) {
  struct pollfd *at = polled->fds;
  at[CONTROL] = (struct pollfd){.fd = cell->control, .events = cell->unsent.size ? POLLIN | POLLOUT : POLLIN};
  at[SIGNALS] = (struct pollfd){.fd = cell->signals, .events = POLLIN};
  at[HOST_SOCKET] = (struct pollfd){.fd = cell->host_socket, .events = POLLIN};
  at += FIXED;
  for (const struct run *run = cell->runs; run; run = run->next, at += PER_RUN) {
    at[0] = (struct pollfd){.fd = run->input.left ? run->input.fd : -1, .events = POLLOUT};
    at[1] = (struct pollfd){.fd = run->output.fd, .events = POLLIN};
    for (int log = 0; log < 2; log++) /* its log waits for a gateway that does not read */
      at[2 + log] = (struct pollfd){.fd = cell->unsent.size ? -1 : run->logs[log].fd, .events = POLLIN};
    at[4] = (struct pollfd){.fd = run->dead || run->patience ? -1 : run->leader_fd, .events = POLLIN};
  }
  polled->count = (size_t)(at - polled->fds);
}

static void serve_run(struct cell *cell, struct run *run, const struct pollfd *fds) {
  if (fds[0].revents && run->input.fd == fds[0].fd) run_write_input(run);
  if (fds[1].revents && run->output.fd == fds[1].fd) run_read_output(cell, run);
  for (int log = 0; log < 2; log++)
    if (fds[2 + log].revents && run->logs[log].fd == fds[2 + log].fd && !cell->unsent.size) run_read_log(cell, run, &run->logs[log]);
  if (fds[4].revents && !run->dead && !run->patience) run->patience = now_ms() + STUCK_MS; /* the host is to say it */
}

static int pause_ms(const struct cell *cell) {
  if (cell->more_dead) return 0;
  int64_t next = 0;
  for (const struct run *run = cell->runs; run; run = run->next) {
    int64_t one = run_next(run);
    if (one && (!next || one < next)) next = one;
  }
  if (!next) return -1;
  int64_t left = next - now_ms();
  return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

/* One that is over is used for the next. */
static void put_away(struct cell *cell) {
  for (struct run **at = &cell->runs; *at;) {
    struct run *run = *at;
    if (run->state != OVER) {
      at = &run->next;
      continue;
    }
    *at = run->next;
    if (cell->spare) {
      free(run);
    } else {
      run->next = NULL;
      cell->spare = run;
    }
  }
}

static size_t count_runs(const struct cell *cell) {
  size_t count = 0;
  for (const struct run *run = cell->runs; run; run = run->next) count++;
  return count;
}

void remove_folders(const char *path, bool gone) {
  rmdir(path);
  char above[PATH_MAX];
  const char *end = strrchr(path, '/');
  if (!gone || !end || end == path || end - path >= PATH_MAX) return;
  memcpy(above, path, (size_t)(end - path));
  above[end - path] = 0;
  rmdir(above);
}

static void leave(struct cell *cell) {
  if (cell->runs) run_end_all(cell);
  folder_empty(cell->folder, NULL);
  remove_folders(cell->path, !cell->may_leave); /* where they are not seen from in here, who waits for us does it */
}

static void tell_ready(struct cell *cell) {
  struct ready_message told = {.head = {.kind = READY}, .got = cell->sandbox->got};
  message_write(cell->control, &told, sizeof told, NULL, 0, -1);
}

int serve(int control, const char *path, struct sandbox *sandbox) {
  static struct cell cell;
  cell = (struct cell){.control = control, .folder = sandbox->folder, .path = path, .sandbox = sandbox, .host_socket = -1, .childless = true};
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_SETMASK, &children, NULL);
  cell.signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
  if (cell.signals < 0) return 71;
  const struct sched_param none = {0};
  sched_setscheduler(0, SCHED_BATCH, &none);
  forget_text();
  tell_ready(&cell);
  static struct polled polled;
  for (;;) {
    if (!make_room(&polled, FIXED + PER_RUN * count_runs(&cell))) return 71;
    gather(&cell, &polled);
    struct run *first = cell.runs; /* those that begin in this turn stand before it */
    if (poll(polled.fds, polled.count, pause_ms(&cell)) < 0 && errno != EINTR) return 71;
    if (polled.fds[CONTROL].revents & POLLOUT) flush_log(&cell);
    if (polled.fds[CONTROL].revents & ~POLLOUT && !hear(&cell)) break;
    const struct pollfd *at = polled.fds + FIXED;
    for (struct run *run = first; run; run = run->next, at += PER_RUN) serve_run(&cell, run, at);
    if (polled.fds[HOST_SOCKET].revents && cell.host_socket == polled.fds[HOST_SOCKET].fd) host_hear(&cell, HEARD_AT_ONCE);
    if (polled.fds[SIGNALS].revents) {
      struct signalfd_siginfo seen[8];
      while (read(cell.signals, seen, sizeof seen) == (ssize_t)sizeof seen) {
      }
      cell.more_dead = true;
    }
    if (cell.more_dead) cell.more_dead = reap(&cell);
    for (struct run *run = cell.runs; run; run = run->next) run_mind_the_time(&cell, run);
    put_away(&cell);
  }
  leave(&cell);
  return cell.may_leave ? LEFT : GATEWAY_GONE;
}
