/* How all of a run comes to an end: it is stopped, swept, reaped and told. */
#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A host says what it has forked, and may not say the truth: outside of a namespace the number may be anybody's. */
static bool is_ours(const struct cell *cell, const struct run *run) {
  if (!is_forked(run) || getpid() == 1) return true;
  pid_t parent = parent_of(run->leader);
  return parent == getpid() || (cell->host && parent == cell->host->leader);
}

static void signal_group(const struct cell *cell, const struct run *run, int number) {
  if (!run->leader || run->dead || !is_ours(cell, run)) return;
  if (kill(-run->leader, number)) kill(run->leader, number); /* it may not lead a group yet */
}

void run_stop(struct cell *cell, struct run *run, enum why why) {
  if (run->state == OVER || run->why != BY_ITSELF) return;
  if (run->output.fd >= 0) run_read_output(cell, run); /* what it says from now on is another thing */
  if (run->why != BY_ITSELF) return;
  run->said_before = run->output.size;
  run->why = why;
  run->deadline = run->linger_at = 0;
  if (run->grace_ms && run->state != FORKING) {
    signal_group(cell, run, SIGTERM);
    for (size_t at = 0; run->dead && at < run->nothers; at++) kill(run->others[at], SIGTERM);
    if (run->dead && !is_forked(run)) signal_all(SIGTERM);
  }
  run->kill_at = now_ms() + run->grace_ms;
}

void run_kill(struct run *run, enum why why) {
  if (run->state == OVER) return;
  if (run->why == BY_ITSELF && run->state != LEAVING) run->why = why;
  run->kill_at = now_ms();
}

void run_go_on(struct run *run) {
  run->goes_on = true;
  if (run->state == LEAVING && run->why == BY_ITSELF) run->kill_at = 0;
}

static enum said said(const struct run *run) {
  if (run->whole) return ALL;
  bool stopped = run->why == DEADLINE || run->why == STOPPED;
  return stopped && run->output.size == run->said_before ? NOTHING_SINCE : PERHAPS_A_PART;
}

static void tell_ended(struct cell *cell, struct run *run) {
  struct ended_message told = {
      .head = {.kind = ENDED, .run = run->id, .body = (uint32_t)run->output.size},
      .pid = (uint32_t)run->leader,
      .status = (uint32_t)run->status,
      .why = run->why,
      .spoiled = cell->spoiled,
      .left_behind = run->left_behind,
      .said = said(run),
      .user_us = microseconds(&run->usage.user),
      .system_us = microseconds(&run->usage.system),
      .peak_rss = run->usage.peak,
      .log_bytes = run->log_bytes,
  };
  if (run->output.rest >= 0) {
    told.head.flags = BODY_IN_FD;
    run_seal(run->output.rest);
    run_tell(cell, &told, sizeof told, NULL, 0, run->output.rest);
  } else {
    run_tell(cell, &told, sizeof told, run->output.first, run->output.size, -1);
  }
}

static bool is_at_work(const struct run *run) {
  bool waits = run->state == WAITING || (run->state == FORKING && run->flags & AHEAD);
  return run->state != OVER && !(run->flags & HOST) && !waits;
}

static bool others_at_work(const struct cell *cell, const struct run *run) {
  for (const struct run *other = cell->runs; other; other = other->next)
    if (other != run && is_at_work(other)) return true;
  return false;
}

static bool is_alone(const struct cell *cell, const struct run *run) {
  for (const struct run *other = cell->runs; other; other = other->next)
    if (other != run && other->state != OVER) return false;
  return true;
}

static void finish(struct cell *cell, struct run *run) {
  run_read_rest(cell, run);
  struct head tail = {.kind = LOG, .run = run->id, .flags = ERR, .body = (uint32_t)run->tail_size};
  if (run->tail_size) run_send_log(cell, &tail, run->tail, run->tail_size);
  run_close(run);
  bool clean = run_give_folder_back(cell, run);
  /* One that was only kept ahead has put nothing there, and others may be at work. */
  if (run->worked || is_alone(cell, run)) clean = run_empty_around(cell) && clean;
  if (!clean) cell->spoiled = true;
  /* What runs beside each other shares these: they are emptied when none of them is at work. */
  if (run->flags & (CHANNEL | HOST)) sandbox_keep(cell->sandbox, false);
  if (!others_at_work(cell, run) && !sandbox_empty(cell->sandbox)) cell->spoiled = true;
  tell_ended(cell, run);
  run_forget(cell, run);
}

static bool is_known(const struct cell *cell, pid_t pid, const struct run **whose) {
  for (struct run *run = cell->runs; run; run = run->next) {
    *whose = run;
    if (run->state == OVER) continue;
    if (run->leader == pid && !run->dead) return true;
    for (size_t at = 0; at < run->nothers; at++)
      if (run->others[at] == pid) return true;
  }
  *whose = NULL;
  return false;
}

/* Whose is what has become our child? Not this run's if it is of another one's session. */
static bool left_by(const struct cell *cell, const struct run *run, pid_t pid) {
  pid_t session = getsid(pid);
  for (const struct run *other = cell->runs; other; other = other->next)
    if (other != run && other->leader == session && is_forked(other)) return false;
  return true;
}

/* A leader that is dead, or is being killed, has left what is new; one that went on long ago has not. */
static bool somebody_leaves(const struct cell *cell, const struct run *run) {
  for (const struct run *other = cell->runs; other; other = other->next) {
    if (other == run || !is_forked(other) || other->state == OVER || other->goes_on) continue;
    if (other->state >= LEAVING || other->kill_at || (other->leader && !other->dead && is_zombie(other->leader))) return true;
  }
  return false;
}

/* What a forked leader has left behind has become ours: how many there are. While it lives it is the one that inherits,
   so that nothing of it comes here. */
static size_t claim(struct cell *cell, struct run *run) {
  static pid_t pids[1024];
  bool known_alone = run->goes_on && somebody_leaves(cell, run);
  size_t count = children(pids, sizeof pids / sizeof *pids), found = 0;
  pid_t others[OTHERS];
  for (size_t at = 0; at < count && found < OTHERS; at++) {
    const struct run *whose;
    if (cell->host && pids[at] == cell->host->leader) continue;
    if (is_known(cell, pids[at], &whose) ? whose == run : !known_alone && left_by(cell, run, pids[at]))
      others[found++] = pids[at];
  }
  memcpy(run->others, others, sizeof *others * found);
  run->nothers = found;
  return found;
}

/* SIGKILL to all that a run has left, and reap: false when something is left still. */
static bool sweep_forked(struct cell *cell, struct run *run) {
  for (int round = 0; round < 200; round++) {
    reap(cell);
    if (!claim(cell, run)) return true;
    for (size_t at = 0; at < run->nothers; at++) kill(run->others[at], SIGKILL);
  }
  return false;
}

void run_know_hosts_own(struct cell *cell) {
  const struct run *whose;
  pid_t pids[OTHERS];
  size_t count = children_of(cell->host->leader, pids, OTHERS);
  cell->nhosts_own = 0;
  for (size_t at = 0; at < count; at++)
    if (!is_known(cell, pids[at], &whose)) cell->hosts_own[cell->nhosts_own++] = pids[at];
  cell->host->nothers = 0;
  count = children(pids, OTHERS); /* what it has detached */
  for (size_t at = 0; at < count; at++)
    if (!is_known(cell, pids[at], &whose)) cell->host->others[cell->host->nothers++] = pids[at];
}

/* Its number may be another's from now on. */
static void forget_other(struct run *run, pid_t pid) {
  for (size_t at = 0; at < run->nothers; at++)
    if (run->others[at] == pid) run->others[at] = run->others[--run->nothers];
}

/* Who is forked can make a child that is the host's, its own sibling (CLONE_PARENT): that is nobody's. False while one
   lives: what it leaves will be ours. */
static bool kill_siblings(const struct cell *cell) {
  static pid_t pids[1024];
  bool none = true;
  if (!cell->host || cell->host->dead) return true;
  for (const struct run *run = cell->runs; run; run = run->next)
    if (run->state == FORKING) return true; /* it may be the child that the host is about to tell of */
  size_t count = children_of(cell->host->leader, pids, sizeof pids / sizeof *pids);
  for (size_t at = 0; at < count; at++) {
    const struct run *whose;
    bool known = is_known(cell, pids[at], &whose);
    for (size_t own = 0; own < cell->nhosts_own && !known; own++) known = cell->hosts_own[own] == pids[at];
    if (known || is_zombie(pids[at])) continue;
    kill(pids[at], SIGKILL);
    none = false;
  }
  return none;
}

/* SIGKILL to all, and reap: false when something will not die. */
static bool sweep(struct cell *cell) {
  const struct timespec moment = {.tv_nsec = 200000};
  int64_t until = now_ms() + SWEEP_MS;
  while (!cell->childless) {
    signal_all(SIGKILL);
    while (reap(cell)) {
    }
    if (cell->childless) return true;
    if (now_ms() > until) return false;
    nanosleep(&moment, NULL);
  }
  return true;
}

void run_end_all(struct cell *cell) {
  cell->childless = false;
  sweep(cell);
}

/* A host that has died, or has to, leaves what it forked: that goes on. */
static bool sweep_host(struct cell *cell, struct run *host) {
  for (int round = 0; round < 200; round++) {
    reap(cell);
    static pid_t pids[1024];
    size_t count = children(pids, sizeof pids / sizeof *pids), left = 0;
    for (size_t at = 0; at < count; at++) {
      const struct run *whose;
      if (is_known(cell, pids[at], &whose) && whose != host) continue;
      kill(pids[at], SIGKILL);
      left++;
    }
    if (!left) return true;
  }
  return false;
}

static void end_forked(struct cell *cell, struct run *run) {
  int64_t now = now_ms();
  if (run->state != ENDING) {
    run_move(run, ENDING);
    run->deadline = 0;
    run->patience = now + STUCK_MS;
  }
  if (!run->dead) {
    signal_group(cell, run, SIGKILL);
    run->kill_at = run->patience;
    if (now < run->patience) return;
    run->patience = run->kill_at = now + STUCK_MS;
    if (cell->host) kill(cell->host->leader, SIGKILL); /* then we are the one who reaps */
    return;
  }
  if (kill_siblings(cell) && sweep_forked(cell, run)) {
    finish(cell, run);
  } else if (now > run->patience) {
    cell->spoiled = true;
    finish(cell, run);
  } else {
    run->kill_at = now + 1;
  }
}

/* The time for it has come: nothing of it is to live on. */
void run_end(struct cell *cell, struct run *run) {
  if (is_forked(run)) {
    end_forked(cell, run);
    return;
  }
  if (run->flags & HOST && !is_alone(cell, run)) {
    if (!run->dead) {
      signal_group(cell, run, SIGKILL);
      run->kill_at = 0;
      return;
    }
    host_hear(cell, LAST_WORDS); /* what it has forked is not its own */
    if (!sweep_host(cell, run)) cell->spoiled = true;
  } else if (!cell->childless && !sweep(cell)) {
    cell->spoiled = true;
  }
  if (run->flags & HOST) host_died(cell);
  finish(cell, run);
}

void run_leader_died(struct cell *cell, struct run *run, int status) {
  run->dead = true;
  run->status = status;
  close_fd(&run->leader_fd);
  if (run->state == ENDING || run->state == FORKING) {
    run->kill_at = now_ms();
    return;
  }
  run->patience = run->linger_at = 0; /* it has been said */
  bool living = is_forked(run) ? claim(cell, run) > 0 : !cell->childless;
  run->left_behind = living && run->why == BY_ITSELF;
  run_move(run, LEAVING);
  input_close(&run->input);
  if (!living || run->why != BY_ITSELF || run->flags & (HOST | CHANNEL))
    run->kill_at = now_ms();
  else if (!run->goes_on && !run->kill_at)
    run->kill_at = now_ms() + (run->results_told ? ANSWER_MS : LAST_WORDS_MS);
}

/* What a leader has left may have ended by itself. */
static void look_after(struct cell *cell, struct run *run) {
  if (run->state != LEAVING) return;
  if (is_forked(run) ? !claim(cell, run) : cell->childless) run->kill_at = now_ms();
}

/* A storm of forks takes the processors from everybody. What is caught of it stands still until its run is over. */
static void calm(struct cell *cell) {
  static pid_t pids[1024];
  size_t count = cell->detached < STORM ? 0 : children(pids, sizeof pids / sizeof *pids);
  for (size_t at = 0; at < count; at++) {
    const struct run *whose;
    bool known = is_known(cell, pids[at], &whose);
    if (!known || (whose->leader != pids[at] && !(whose->flags & (HOST | CHANNEL)))) kill(pids[at], SIGSTOP);
  }
  int64_t now = now_ms();
  if (now - cell->counted_at < STORM_MS) return;
  cell->counted_at = now;
  cell->detached = 0;
}

bool reap(struct cell *cell) {
  int count = 0;
  for (; count < REAPED_AT_ONCE; count++) {
    struct rusage spent;
    int status;
    pid_t pid = wait4(-1, &status, WNOHANG, &spent);
    if (pid < 0 && errno == EINTR) continue;
    cell->childless = pid < 0;
    if (pid <= 0) break;
    const struct run *whose = NULL;
    is_known(cell, pid, &whose);
    struct run *run = whose ? (struct run *)whose : cell->host ? cell->host : cell->runs;
    if (!run || run->state == OVER) continue;
    usage_add(&run->usage, &spent);
    cell->detached += pid != run->leader;
    if (run->flags & HOST) forget_other(run, pid);
    if (run->leader == pid && !run->dead) {
      cell->childless = waitid(P_ALL, 0, &(siginfo_t){0}, WEXITED | WNOHANG | WNOWAIT) < 0;
      run_leader_died(cell, run, status);
    }
  }
  for (struct run *run = cell->runs; run; run = run->next) look_after(cell, run);
  calm(cell);
  return count == REAPED_AT_ONCE;
}
