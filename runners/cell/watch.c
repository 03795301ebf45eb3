/* What a run takes, what time says of it, and how a process that stays comes to rest. */
#define _GNU_SOURCE
#include "run.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* --- a process that stays */

static void tell_measured(struct cell *cell, struct run *run, uint32_t rested, bool clean) {
  struct measured_message told = {.head = {.kind = MEASURED, .run = run->id, .flags = rested}, .clean = clean};
  struct spent spent = measure(run->leader);
  told.user_us = spent.user_us + microseconds(&run->usage.user);
  told.system_us = spent.system_us + microseconds(&run->usage.system);
  told.size = spent.size;
  told.peak = spent.peak > run->usage.peak ? spent.peak : run->usage.peak;
  told.processes = spent.processes;
  run_tell(cell, &told, sizeof told, NULL, 0, -1);
}

void run_measure(struct cell *cell, struct run *run) {
  if (run->leader && !run->dead) tell_measured(cell, run, 0, true);
}

static void rest(struct cell *cell, struct run *run) {
  reap(cell);
  if (run->state != RESTING) return; /* it was about to end */
  pid_t keep[OTHERS + 1];
  memcpy(keep, run->others, sizeof *keep * run->nothers);
  keep[run->nothers] = run->leader;
  if (kill_below(getpid(), keep, run->nothers + 1)) {
    run->killed = true;
    run->watch_at = now_ms() + 1;
    return;
  }
  unsigned before = folder_removed;
  bool clean = folder_empty(run->folder, &run->files) && run_is_at_its_name(cell, run) && run_empty_around(cell) &&
               sandbox_empty(cell->sandbox);
  run->watch_ms = IDLE_WATCH_MS;
  run->watch_at = now_ms() + IDLE_WATCH_MS;
  run_move(run, WAITING);
  uint32_t swept = (run->killed ? KILLED_SOME : 0) | (folder_removed != before ? REMOVED_SOME : 0);
  run->killed = false;
  tell_measured(cell, run, CAME_TO_REST | swept, clean);
}

void run_rest(struct cell *cell, struct run *run, bool keep) {
  if (!(run->flags & CHANNEL) || run->dead || run->why != BY_ITSELF || run->state > RESTING) return;
  if (keep) {
    run->nothers = 0; /* the leader is no other */
    pid_t pids[OTHERS + 1];
    size_t count = list_below(getpid(), pids, OTHERS + 1);
    for (size_t at = 0; at < count && run->nothers < OTHERS; at++)
      if (pids[at] != run->leader) run->others[run->nothers++] = pids[at];
    bool clean = folder_names(run->folder, &run->files);
    sandbox_keep(cell->sandbox, true);
    tell_measured(cell, run, CAME_TO_REST, clean);
    return;
  }
  run_read_logs(cell, run); /* what it has said belongs to what it has done */
  run->deadline = 0;
  if (run->state != RESTING) run_move(run, RESTING);
  rest(cell, run);
}

/* --- time */

/* What it takes: what a host has forked is weighed for itself. */
static uint64_t hosts_weight(const struct cell *cell, const struct run *host, uint32_t *processes) {
  if (host->dead) return 0;
  uint64_t size = measure(host->leader).size;
  *processes = 1;
  for (size_t at = 0; at < cell->nhosts_own + host->nothers; at++) {
    uint32_t more = 0;
    pid_t pid = at < cell->nhosts_own ? cell->hosts_own[at] : host->others[at - cell->nhosts_own];
    if (is_zombie(pid)) continue;
    size += weigh(cell->sandbox, pid, host->max_memory, &more);
    *processes += more;
  }
  return size;
}

static uint64_t weight(const struct cell *cell, const struct run *run, uint32_t *processes) {
  /* What was forked ahead has put nothing there yet: it is of those that are at work beside it. */
  bool put = !(run->flags & HOST) && !(is_forked(run) && run->state == WAITING);
  uint64_t held = put ? sandbox_weight(cell->sandbox) : 0;
  uint64_t bound = !run->max_memory ? 0 : run->max_memory > held ? run->max_memory - held : 1;
  if (run->flags & HOST) return hosts_weight(cell, run, processes);
  if (!is_forked(run)) return held + weigh(cell->sandbox, 0, bound, processes);
  uint64_t size = held + (run->dead ? 0 : weigh(cell->sandbox, run->leader, bound, processes));
  for (size_t at = 0; at < run->nothers; at++) {
    uint32_t more = 0;
    size += weigh(cell->sandbox, run->others[at], bound, &more);
    *processes += more;
  }
  return size;
}

/* What lies beside its folder counts too: of as many runs as there are, each may be the one that it is of. */
static bool disk_full(const struct cell *cell, const struct run *run) {
  unsigned count = 0;
  for (const struct run *one = cell->runs; one; one = one->next) count += one->state > WAITING && one->state != OVER && !(one->flags & HOST);
  uint64_t unnamed = run->flags & HOST || run->dead ? 0 : unlinked_use(cell->sandbox, is_forked(run) ? run->leader : 0);
  return sandbox_disk_full(cell->sandbox, run->folder, 1, unnamed) ||
         sandbox_disk_full(cell->sandbox, cell->folder, count ? count : 1, 0);
}

static void watch(struct cell *cell, struct run *run) {
  uint32_t processes = 0;
  uint64_t size = weight(cell, run, &processes);
  bool grew = size > run->usage.peak + (run->usage.peak >> 2);
  if (size > run->usage.peak) run->usage.peak = size;
  run->watch_ms = grew && run->max_memory && size > run->max_memory / 8 ? FIRST_WATCH_MS : run->watch_ms * 2;
  int64_t most = run->state == WAITING ? IDLE_WATCH_MS : WATCH_MS;
  if (run->watch_ms > most) run->watch_ms = most;
  if (run->max_memory && size > run->max_memory)
    run_kill(run, MEMORY);
  else if (run->max_pids && processes > run->max_pids)
    run_kill(run, PROCESSES);
  else if (run->looks++ % DISK_EVERY == DISK_EVERY - 1 && disk_full(cell, run))
    run_kill(run, DISK);
}

/* One that is dead, which its host has yet to say, lingers no more. */
static bool lingers(const struct run *run) { return run->linger_at && !run->dead && !run->patience; }

int64_t run_next(const struct run *run) {
  int64_t next = run->state == FORKING || run->state == ENDING ? 0 : run->watch_at;
  if (run->deadline && (!next || run->deadline < next)) next = run->deadline;
  if (lingers(run) && (!next || run->linger_at < next)) next = run->linger_at;
  if (run->kill_at && (!next || run->kill_at < next)) next = run->kill_at;
  if (run->patience && run->state != ENDING && (!next || run->patience < next)) next = run->patience;
  return next;
}

void run_mind_the_time(struct cell *cell, struct run *run) {
  if (run->state == OVER) return;
  int64_t now = now_ms();
  if (run->deadline && now >= run->deadline) run_stop(cell, run, DEADLINE);
  if (lingers(run) && now >= run->linger_at) run_stop(cell, run, LINGERED);
  if (run->state != FORKING && run->state != ENDING && !run->kill_at && now >= run->watch_at) {
    if (run->state == RESTING) {
      rest(cell, run);
    } else {
      watch(cell, run);
      run->watch_at = now_ms() + run->watch_ms;
    }
  }
  if (run->patience && run->state != ENDING && now >= run->patience) {
    run->patience = now + STUCK_MS;
    if (cell->host) kill(cell->host->leader, SIGKILL); /* it does not say how one has ended: then we are the one who reaps */
  }
  if (run->kill_at && now_ms() >= run->kill_at) run_end(cell, run);
}
