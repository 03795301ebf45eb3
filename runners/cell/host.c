/* A process that has imported a connector, and forks for each run. Its socket is descriptor 3 on its side: one message a
   packet, four numbers of 32 bits and a body. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
  ASK_FORK = 1, /* to it: run, flags (1: there is time), bytes of the body: folder and variables, each with its NUL; streams */
  FORKED_IT = 1, /* from it: run, pid */
  NOT_FORKED,    /* run, 0, and words */
  EXITED,        /* run, wait status, and three numbers of 64 bits: microseconds of user and system, most resident bytes */
  SAYS,          /* 0, 0, and JSON for the gateway */
};

struct note {
  uint32_t kind, run, value, body;
};

bool host_fork(struct cell *cell, const struct run *run, char *const *envp, const int *streams, int nstreams) {
  static char body[INLINE];
  size_t size = (size_t)snprintf(body, sizeof body, "%s/%s", cell->path, run->name) + 1;
  for (char *const *one = envp; *one; one++) {
    size_t length = strlen(*one) + 1;
    if (size + length > sizeof body) {
      errno = E2BIG;
      return false;
    }
    memcpy(body + size, *one, length);
    size += length;
  }
  struct note note = {ASK_FORK, run->id, run->flags & IN_TIME ? 1 : 0, (uint32_t)size};
  int sent = cell->host_socket < 0 ? -1 : message_send(cell->host_socket, &note, sizeof note, body, size, streams, nstreams);
  if (sent <= 0) errno = sent ? ESRCH : EAGAIN;
  return sent > 0;
}

static const char died[] = "its host died";

/* It runs what we know nothing about, so what it says is looked at: we are going to kill by that number. */
static bool is_its(const struct cell *cell, pid_t pid) {
  for (const struct run *run = cell->runs; run; run = run->next)
    if (run->state != OVER && run->leader == pid) return false;
  pid_t parent = pid > 1 ? parent_of(pid) : 0;
  return parent && (parent == getpid() || (cell->host && parent == cell->host->leader));
}

static void forked(struct cell *cell, struct run *run, pid_t pid) {
  if (!run || run->leader) return;
  int leader_fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (is_its(cell, pid)) return run_forked(cell, run, pid, leader_fd);
  close_fd(&leader_fd); /* it has died with its host, and we have reaped it */
  run_failed(cell, run, IN_HOST, ESRCH, died, sizeof died - 1);
}

static bool is_dead(const struct run *run) {
  struct pollfd leader = {.fd = run->leader_fd, .events = POLLIN};
  return run->leader_fd >= 0 ? poll(&leader, 1, 0) > 0 : is_zombie(run->leader);
}

static void exited(struct cell *cell, struct run *run, int status, const char *body, size_t size) {
  uint64_t spent[3];
  if (run->dead || size != sizeof spent || !is_dead(run)) return;
  memcpy(spent, body, sizeof spent);
  struct rusage usage = {
      .ru_utime = {.tv_sec = (time_t)(spent[0] / 1000000), .tv_usec = (suseconds_t)(spent[0] % 1000000)},
      .ru_stime = {.tv_sec = (time_t)(spent[1] / 1000000), .tv_usec = (suseconds_t)(spent[1] % 1000000)},
      .ru_maxrss = (long)(spent[2] >> 10),
  };
  usage_add(&run->usage, &usage);
  run_leader_died(cell, run, status);
}

void host_hear(struct cell *cell, int most) {
  static struct message message;
  for (int count = 0; count < most && cell->host_socket >= 0; count++) {
    int read = message_read(cell->host_socket, &message);
    if (read < 0) return;
    if (read == 0) {
      close_fd(&cell->host_socket); /* it ends, or has closed what it was to speak on: it forks no more */
      return;
    }
    struct note note;
    memcpy(&note, message.bytes, sizeof note);
    const char *body = message.bytes + sizeof note;
    size_t size = message.size - sizeof note;
    struct run *run = run_find(cell, note.run);
    if (run && !(run->flags & FORKED)) run = NULL;
    message_release(&message);
    if (note.kind == FORKED_IT) {
      forked(cell, run, (pid_t)note.value);
    } else if (note.kind == NOT_FORKED && run && !run->leader) {
      run_failed(cell, run, IN_HOST, 0, body, size);
    } else if (note.kind == EXITED && run && run->leader) {
      exited(cell, run, (int)note.value, body, size);
    } else if (note.kind == SAYS && cell->host) {
      sandbox_keep(cell->sandbox, true); /* it has imported */
      run_know_hosts_own(cell);
      run_measure(cell, cell->host);
      struct head head = {.kind = TOLD, .run = cell->host->id, .body = (uint32_t)size};
      message_write(cell->control, &head, sizeof head, body, size, -1);
    }
  }
}

void host_died(struct cell *cell) {
  host_hear(cell, LAST_WORDS); /* its last words */
  close_fd(&cell->host_socket);
  for (struct run *run = cell->runs; run; run = run->next) {
    if (run->state == OVER || !(run->flags & FORKED) || run->dead) continue;
    if (!run->leader)
      run_failed(cell, run, IN_HOST, ESRCH, died, sizeof died - 1);
    else if (waitid(P_PID, (id_t)run->leader, &(siginfo_t){0}, WEXITED | WNOHANG | WNOWAIT) < 0)
      run_leader_died(cell, run, SIGKILL); /* the host has reaped it, and said nothing of it */
  }
}
