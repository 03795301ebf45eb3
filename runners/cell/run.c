/* One run, from its message to its end: its state, its time, what it may use, and how all of it comes to an end. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPARE ".spare"

static const bool moves[STATES][STATES] = {
    [FORKING] = {[WAITING] = true, [RUNNING] = true, [ENDING] = true, [OVER] = true},
    [WAITING] = {[RUNNING] = true, [RESTING] = true, [LEAVING] = true, [ENDING] = true, [OVER] = true},
    [RUNNING] = {[WAITING] = true, [RESTING] = true, [LEAVING] = true, [ENDING] = true, [OVER] = true},
    [RESTING] = {[WAITING] = true, [LEAVING] = true, [OVER] = true},
    [LEAVING] = {[ENDING] = true, [OVER] = true},
    [ENDING] = {[OVER] = true},
};

int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void move_to(struct run *run, enum state state) {
  if (!moves[run->state][state]) {
    fprintf(stderr, "cell: a run cannot go from state %d to %d\n", run->state, state);
    abort();
  }
  run->state = state;
  run->worked |= state == RUNNING;
}

static bool is_forked(const struct run *run) { return run->flags & FORKED; }

struct run *run_find(const struct cell *cell, uint32_t id) {
  for (struct run *run = cell->runs; run; run = run->next)
    if (run->id == id && run->state != OVER) return run;
  return NULL;
}

static void close_ours(struct run *run) {
  input_close(&run->input);
  message_release(&run->held);
  close_fd(&run->output.fd);
  for (int at = 0; at < 2; at++) close_fd(&run->logs[at].fd);
}

static void forget(struct cell *cell, struct run *run) {
  close_ours(run);
  close_fd(&run->leader_fd);
  close_fd(&run->output.rest);
  close_fd(&run->folder);
  free(run->files.text);
  run->files = (struct names){0};
  if (cell->host == run) cell->host = NULL;
  move_to(run, OVER);
}

/* --- the beginning */

static struct run *make(struct cell *cell, const struct run_message *asked) {
  struct run *run = cell->spare ? cell->spare : calloc(1, sizeof *run);
  if (!run) return NULL;
  cell->spare = run == cell->spare ? run->next : cell->spare;
  /* Not as a whole: it has room for a message and a result, which would be written to for nothing. */
  run->id = asked->head.run;
  run->flags = asked->head.flags;
  run->state = run->flags & FORKED ? FORKING : run->flags & (AHEAD | CHANNEL | HOST) ? WAITING : RUNNING;
  run->why = BY_ITSELF;
  run->leader = 0;
  run->leader_fd = run->input.fd = run->output.fd = run->output.rest = run->logs[0].fd = run->logs[1].fd = -1;
  run->dead = run->left_behind = run->whole = run->goes_on = run->touched = false;
  run->worked = run->state == RUNNING;
  run->status = 0;
  run->kill_at = run->patience = 0;
  int64_t now = now_ms();
  run->deadline = asked->deadline_ms && run->state != WAITING ? now + asked->deadline_ms : 0;
  run->watch_ms = FIRST_WATCH_MS;
  run->watch_at = now + FIRST_WATCH_MS;
  run->looks = run->results_told = 0;
  run->grace_ms = asked->grace_ms;
  run->max_pids = asked->max_pids;
  run->max_log = asked->max_log;
  run->max_memory = asked->max_memory;
  run->log_bytes = run->tail_size = run->logs[0].size = run->logs[1].size = 0;
  run->usage = (struct usage){0};
  run->folder = -1;
  run->name[0] = 0;
  run->nothers = 0;
  run->files = (struct names){0};
  run->held.mapped = NULL;
  run->held.nfds = 0;
  run->input.left = 0;
  run->output.size = 0;
  run->output.bound = asked->max_output;
  run->logs[0].stream = ERR;
  run->logs[1].stream = OUT;
  run->next = cell->runs;
  cell->runs = run;
  return run;
}

/* Its ends are above those that they become. */
static int above(int fd) {
  int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 10);
  close_fd(&fd);
  return copy;
}

static bool make_pipe(int *ours, int *theirs, bool we_write) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return false;
  *ours = ends[we_write];
  *theirs = above(ends[!we_write]);
  return *theirs >= 0 && !fcntl(*ours, F_SETFL, O_NONBLOCK);
}

static void close_all(int *fds, int count) {
  for (int at = 0; at < count; at++) close_fd(&fds[at]);
}

/* Our ends: input, result, and one or two logs. Theirs: what becomes descriptors 0 to 3. */
static int make_pipes(struct cell *cell, struct run *run, struct message *message, int theirs[4]) {
  if (run->flags & (CHANNEL | HOST)) {
    if (!make_pipe(&run->logs[0].fd, &theirs[2], false)) return -1;
    theirs[1] = fcntl(theirs[2], F_DUPFD_CLOEXEC, 10);
    if (run->flags & HOST) {
      int ends[2];
      theirs[0] = above(open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) return -1;
      cell->host_socket = ends[0];
      theirs[3] = above(ends[1]);
    } else {
      int given = run->flags & BODY_IN_FD ? 1 : 0; /* the first one is the body */
      for (int at = 0; at < 2 && given + at < message->nfds; at++) {
        theirs[at * 3] = above(message->fds[given + at]);
        message->fds[given + at] = -1;
      }
    }
    return theirs[0] < 0 || theirs[1] < 0 || theirs[3] < 0 ? -1 : 4;
  }
  bool on_3 = run->flags & RESULT_ON_3;
  bool made = make_pipe(&run->input.fd, &theirs[0], true) &&
              make_pipe(on_3 ? &run->logs[1].fd : &run->output.fd, &theirs[1], false) &&
              make_pipe(&run->logs[0].fd, &theirs[2], false) &&
              (!on_3 || make_pipe(&run->output.fd, &theirs[3], false));
  return made ? 3 + on_3 : -1;
}

/* What runs may open its pipes again, as /dev/stdin, say: they have to be its user's. */
static void give_pipes(const struct cell *cell, const int *fds, int count) {
  struct stat facts;
  for (int at = 0; cell->sandbox->got & OTHER_USER && at < count; at++)
    if (!fstat(fds[at], &facts) && S_ISFIFO(facts.st_mode)) sandbox_own(cell->sandbox, fds[at]);
}

/* A folder of its own below the cell's. To make one takes the disk longer than to rename one that is empty again; what
   runs beside others makes its own, since they could have put something else there. */
static bool take_folder(struct cell *cell, struct run *run) {
  snprintf(run->name, sizeof run->name, "%u", run->id);
  bool made = cell->has_spare_folder && !is_forked(run) && !renameat(cell->folder, SPARE, cell->folder, run->name);
  cell->has_spare_folder = cell->has_spare_folder && !made;
  for (int tries = 0; !made && tries < 2; tries++) {
    made = !mkdirat(cell->folder, run->name, 0700);
    if (made || errno != EEXIST) break;
    int squatter = openat(cell->folder, run->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (squatter >= 0) folder_empty(squatter, NULL);
    close_fd(&squatter);
    if (unlinkat(cell->folder, run->name, AT_REMOVEDIR)) unlinkat(cell->folder, run->name, 0);
  }
  if (!made) return false;
  run->folder = openat(cell->folder, run->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return run->folder >= 0 && sandbox_own(cell->sandbox, run->folder);
}

static bool is_at_its_name(const struct cell *cell, const struct run *run) {
  struct stat ours, there;
  return !fstat(run->folder, &ours) && !fstatat(cell->folder, run->name, &there, AT_SYMLINK_NOFOLLOW) &&
         ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

/* It is gone from its name; whatever has been put there in its place is removed as what it is. */
static bool give_folder_back(struct cell *cell, struct run *run) {
  if (run->folder < 0) return true;
  bool empty = folder_empty(run->folder, NULL), same = is_at_its_name(cell, run);
  close_fd(&run->folder);
  if (empty && same && !cell->has_spare_folder && !is_forked(run) && !renameat(cell->folder, run->name, cell->folder, SPARE))
    cell->has_spare_folder = true;
  else if (unlinkat(cell->folder, run->name, AT_REMOVEDIR))
    unlinkat(cell->folder, run->name, 0);
  return empty;
}

/* What a run has put beside its folder goes with it; the folders of others stay. */
static bool empty_around(const struct cell *cell) {
  size_t room = sizeof SPARE, size = 0;
  for (const struct run *run = cell->runs; run; run = run->next) room += sizeof run->name;
  char *text = malloc(room);
  if (!text) return false;
  for (const struct run *run = cell->runs; run; run = run->next) {
    if (run->state == OVER || run->folder < 0) continue;
    memcpy(text + size, run->name, strlen(run->name) + 1);
    size += strlen(run->name) + 1;
  }
  if (cell->has_spare_folder) memcpy(text + size, SPARE, sizeof SPARE), size += sizeof SPARE;
  const struct names keep = {text, size};
  bool done = folder_empty(cell->folder, &keep);
  free(text);
  return done;
}

/* HOME and TMPDIR are the run's own folder, unless they were given. */
static void add_folder(const struct cell *cell, const struct run *run, char **envp) {
  static const char *const names[] = {"HOME=", "TMPDIR="};
  static char room[2][PATH_MAX + 64];
  size_t count = 0;
  while (envp[count]) count++;
  for (int at = 0; at < 2; at++) {
    size_t length = strlen(names[at]);
    bool given = false;
    for (char **one = envp; *one && !given; one++) given = !strncmp(*one, names[at], length);
    if (given) continue;
    snprintf(room[at], sizeof room[at], "%s%s/%s", names[at], cell->path, run->name);
    envp[count++] = room[at];
    envp[count] = NULL;
  }
}

/* Say something, after what was said before it. */
static void tell(struct cell *cell, const void *fixed, size_t size, const void *body, size_t length, int fd) {
  if (cell->unsent.size)
    message_write(cell->control, &cell->unsent.head, sizeof cell->unsent.head, cell->unsent.body, cell->unsent.size, -1);
  cell->unsent.size = 0;
  message_write(cell->control, fixed, size, body, length, fd);
}

static void tell_failed(struct cell *cell, uint32_t id, enum step step, int error, const char *words, size_t length) {
  struct failed_message told = {
      .head = {.kind = FAILED, .run = id, .body = (uint32_t)length}, .step = step, .error = (uint32_t)error};
  tell(cell, &told, sizeof told, words, length, -1);
}

void run_failed(struct cell *cell, struct run *run, enum step step, int error, const char *words, size_t length) {
  if (run->flags & HOST) close_fd(&cell->host_socket);
  give_folder_back(cell, run);
  uint32_t id = run->id;
  forget(cell, run);
  tell_failed(cell, id, step, error, words, length);
}

static void tell_started(struct cell *cell, const struct run *run) {
  if (!(run->flags & TELL)) return;
  struct failed_message told = {.head = {.kind = STARTED, .run = run->id}, .step = (uint32_t)run->leader};
  tell(cell, &told, sizeof told, NULL, 0, -1);
}

/* What is to be read by the process stays where it is until it has been. A short one is in the room of the next message:
   what the pipe does not take at once is moved. */
static void take_input(struct run *run, struct message *message, const char *at, size_t left) {
  run->input.at = at;
  run->input.left = left;
  message_hand_over(message, &run->held);
  input_write(&run->input);
  if (run->input.left && !run->held.mapped) {
    memcpy(run->held.bytes, run->input.at, run->input.left);
    run->input.at = run->held.bytes;
  }
  if (run->input.fd < 0) message_release(&run->held);
}

static enum step begin(struct cell *cell, struct run *run, struct message *message, char **words, uint32_t argc) {
  int theirs[4] = {-1, -1, -1, -1};
  enum step step = PIPES;
  int error = 0;
  int count = make_pipes(cell, run, message, theirs);
  give_pipes(cell, theirs, count);
  char **envp = words + argc + 1;
  if (count < 0) {
    error = errno;
  } else if (!take_folder(cell, run)) {
    step = FOLDER;
    error = errno;
  } else if (add_folder(cell, run, envp), is_forked(run)) {
    step = host_fork(cell, run, envp, theirs, count) ? NO_STEP : IN_HOST;
    error = errno;
  } else {
    struct launch launch = {words, envp, theirs, count, run->folder, cell->sandbox};
    run->leader = start(&launch, &step, &error);
    cell->childless = false;
    if (run->leader > 0) step = NO_STEP;
  }
  close_all(theirs, 4);
  errno = error;
  return step;
}

void run_begin(struct cell *cell, struct message *message) {
  static char *words[WORDS + 4];
  const struct run_message asked = message->run;
  const char *body = message->size >= sizeof asked ? message_body(message, sizeof asked) : NULL;
  bool busy = asked.head.flags & FORKED ? !cell->host : cell->runs != NULL;
  if (busy || !body || !message_words(&asked, body, words, WORDS + 2)) {
    tell_failed(cell, message->head.run, WIRE, busy ? EBUSY : EBADMSG, NULL, 0);
    return;
  }
  struct run *run = make(cell, &asked);
  if (!run) {
    tell_failed(cell, asked.head.run, FORK, ENOMEM, NULL, 0);
    return;
  }
  enum step step = begin(cell, run, message, words, asked.argc);
  if (step != NO_STEP) {
    run_failed(cell, run, step, errno, NULL, 0);
    return;
  }
  if (run->flags & HOST) cell->host = run;
  if (!is_forked(run)) tell_started(cell, run);
  if (run->flags & (CHANNEL | HOST | AHEAD)) return;
  take_input(run, message, body + asked.words, asked.head.body - asked.words);
}

void run_forked(struct cell *cell, struct run *run, pid_t leader, int leader_fd) {
  run->leader = leader;
  run->leader_fd = leader_fd;
  run->watch_at = now_ms() + run->watch_ms;
  tell_started(cell, run);
  if (run->state == ENDING)
    run_kill(run, run->why);
  else
    move_to(run, run->flags & AHEAD ? WAITING : RUNNING);
}

void run_feed(struct run *run, struct message *message) {
  const char *body = message_body(message, sizeof(struct feed_message));
  if (run->state != WAITING || run->flags & HOST || !body) return;
  run->flags |= message->head.flags & TELL_RESULT;
  uint32_t ms = message->feed.deadline_ms;
  run->deadline = ms ? now_ms() + ms : 0;
  run->watch_ms = FIRST_WATCH_MS;
  run->watch_at = now_ms() + FIRST_WATCH_MS;
  move_to(run, RUNNING);
  if (!(run->flags & CHANNEL)) take_input(run, message, body, message->head.body);
}

/* --- input and output */

void run_write_input(struct run *run) {
  input_write(&run->input);
  if (run->input.fd < 0) message_release(&run->held);
}

static void send_log(struct cell *cell, const struct head *head, const char *data, size_t size) {
  if (!cell->unsent.size && message_send(cell->control, head, sizeof *head, data, size, NULL, 0)) return;
  flush_log(cell);
  if (cell->unsent.size) { /* only at the end of a run, when there is nothing else that could be done meanwhile */
    message_write(cell->control, &cell->unsent.head, sizeof *head, cell->unsent.body, cell->unsent.size, -1);
    cell->unsent.size = 0;
  }
  cell->unsent.head = *head;
  memcpy(cell->unsent.body, data, size);
  cell->unsent.size = size;
}

void flush_log(struct cell *cell) {
  if (!cell->unsent.size) return;
  if (message_send(cell->control, &cell->unsent.head, sizeof(struct head), cell->unsent.body, cell->unsent.size, NULL, 0))
    cell->unsent.size = 0;
}

static void keep_tail(struct run *run, const char *data, size_t size) {
  if (size > TAIL) {
    data += size - TAIL;
    size = TAIL;
  }
  size_t over = run->tail_size + size > TAIL ? run->tail_size + size - TAIL : 0;
  memmove(run->tail, run->tail + over, run->tail_size - over);
  memcpy(run->tail + run->tail_size - over, data, size);
  run->tail_size += size - over;
}

void run_read_log(struct cell *cell, struct run *run, struct log *log) {
  static char chunk[INLINE];
  ssize_t size = read(log->fd, chunk, sizeof chunk);
  if (size < 0) return;
  if (size == 0) {
    close_fd(&log->fd);
    return;
  }
  uint64_t before = log->size;
  log->size += (uint64_t)size;
  run->log_bytes += (uint64_t)size;
  size_t told = (size_t)size;
  /* One byte more than the bound, so that the gateway sees that there is more. */
  if (run->max_log && log->size > run->max_log) told = before > run->max_log ? 0 : (size_t)(run->max_log + 1 - before);
  if (log->stream == ERR) keep_tail(run, chunk + told, (size_t)size - told);
  if (!told) return;
  struct head head = {.kind = LOG, .run = run->id, .flags = log->stream, .body = (uint32_t)told};
  send_log(cell, &head, chunk, told);
}

static void seal(int fd) { fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL); }

static void tell_result(struct cell *cell, const struct run *run, bool nothing) {
  struct head head = {.kind = RESULT, .run = run->id, .body = nothing ? 0 : (uint32_t)run->output.size};
  if (!nothing && run->output.rest >= 0) {
    seal(run->output.rest); /* it is closed: nothing follows */
    head.flags = BODY_IN_FD;
    tell(cell, &head, sizeof head, NULL, 0, run->output.rest);
  } else {
    tell(cell, &head, sizeof head, run->output.first, head.body, -1);
  }
}

void run_read_output(struct cell *cell, struct run *run) {
  uint64_t before = run->output.size;
  if (!output_read(&run->output)) {
    close_fd(&run->output.fd);
    run_kill(run, OUTPUT);
    return;
  }
  bool closed = run->output.fd < 0, more = run->output.size > before;
  if (closed && run->why == BY_ITSELF) run->whole = true;
  if (run->state == WAITING && more && !run->touched) {
    run->touched = true;
    tell_result(cell, run, true);
  }
  if (!(run->flags & TELL_RESULT) || run->goes_on || run->why != BY_ITSELF) return;
  bool ends = run->output.rest < 0 && more && run->output.first[run->output.size - 1] == '\n';
  if (!closed && (!ends || run->results_told >= RESULTS_TOLD)) return;
  run->results_told++;
  tell_result(cell, run, false);
}

/* What there is of its logs now; of one that floods them, a part. */
static void read_logs(struct cell *cell, struct run *run) {
  for (int at = 0; at < 2; at++)
    for (int count = 0; count < 64 && run->logs[at].fd >= 0; count++) {
      uint64_t before = run->log_bytes;
      run_read_log(cell, run, &run->logs[at]);
      if (run->logs[at].fd >= 0 && run->log_bytes == before) break;
    }
}

/* What is in the pipes now is all there will be: every writer is dead. */
static void read_rest(struct cell *cell, struct run *run) {
  while (run->output.fd >= 0 && run->why != OUTPUT) {
    uint64_t before = run->output.size;
    run_read_output(cell, run);
    if (run->output.fd >= 0 && run->output.size == before) break;
  }
  read_logs(cell, run);
}

/* --- the end */

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

void run_stop(const struct cell *cell, struct run *run, enum why why) {
  if (run->state == OVER || run->why != BY_ITSELF) return;
  run->why = why;
  run->deadline = 0;
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

static uint64_t microseconds(const struct timeval *time) { return (uint64_t)time->tv_sec * 1000000 + (uint64_t)time->tv_usec; }

static void tell_ended(struct cell *cell, struct run *run) {
  struct ended_message told = {
      .head = {.kind = ENDED, .run = run->id, .body = (uint32_t)run->output.size},
      .pid = (uint32_t)run->leader,
      .status = (uint32_t)run->status,
      .why = run->why,
      .spoiled = cell->spoiled,
      .left_behind = run->left_behind,
      .whole = run->whole,
      .user_us = microseconds(&run->usage.user),
      .system_us = microseconds(&run->usage.system),
      .peak_rss = run->usage.peak,
      .log_bytes = run->log_bytes,
  };
  if (run->output.rest >= 0) {
    told.head.flags = BODY_IN_FD;
    seal(run->output.rest);
    tell(cell, &told, sizeof told, NULL, 0, run->output.rest);
  } else {
    tell(cell, &told, sizeof told, run->output.first, run->output.size, -1);
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
  read_rest(cell, run);
  struct head tail = {.kind = LOG, .run = run->id, .flags = ERR, .body = (uint32_t)run->tail_size};
  if (run->tail_size) send_log(cell, &tail, run->tail, run->tail_size);
  close_ours(run);
  bool clean = give_folder_back(cell, run);
  /* One that was only kept ahead has put nothing there, and others may be at work. */
  if (run->worked || is_alone(cell, run)) clean = empty_around(cell) && clean;
  if (!clean) cell->spoiled = true;
  /* What runs beside each other shares these: they are emptied when none of them is at work. */
  if (run->flags & (CHANNEL | HOST)) sandbox_keep(cell->sandbox, false);
  if (!others_at_work(cell, run) && !sandbox_empty(cell->sandbox)) cell->spoiled = true;
  tell_ended(cell, run);
  forget(cell, run);
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
    move_to(run, ENDING);
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
static void end(struct cell *cell, struct run *run) {
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
  run->patience = 0; /* it has been said */
  bool living = is_forked(run) ? claim(cell, run) > 0 : !cell->childless;
  run->left_behind = living && run->why == BY_ITSELF;
  move_to(run, LEAVING);
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

/* --- a process that stays */

static void tell_measured(struct cell *cell, struct run *run, bool rested, bool clean) {
  struct measured_message told = {.head = {.kind = MEASURED, .run = run->id, .flags = rested}, .clean = clean};
  struct spent spent = measure(run->leader);
  told.user_us = spent.user_us + microseconds(&run->usage.user);
  told.system_us = spent.system_us + microseconds(&run->usage.system);
  told.size = spent.size;
  told.peak = spent.peak > run->usage.peak ? spent.peak : run->usage.peak;
  told.processes = spent.processes;
  tell(cell, &told, sizeof told, NULL, 0, -1);
}

void run_measure(struct cell *cell, struct run *run) {
  if (run->leader && !run->dead) tell_measured(cell, run, false, true);
}

static void rest(struct cell *cell, struct run *run) {
  reap(cell);
  if (run->state != RESTING) return; /* it was about to end */
  pid_t keep[OTHERS + 1];
  memcpy(keep, run->others, sizeof *keep * run->nothers);
  keep[run->nothers] = run->leader;
  if (kill_below(getpid(), keep, run->nothers + 1)) {
    run->watch_at = now_ms() + 1;
    return;
  }
  bool clean = folder_empty(run->folder, &run->files) && is_at_its_name(cell, run) && empty_around(cell) &&
               sandbox_empty(cell->sandbox);
  run->watch_ms = IDLE_WATCH_MS;
  run->watch_at = now_ms() + IDLE_WATCH_MS;
  move_to(run, WAITING);
  tell_measured(cell, run, true, clean);
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
    tell_measured(cell, run, true, clean);
    return;
  }
  read_logs(cell, run); /* what it has said belongs to what it has done */
  run->deadline = 0;
  if (run->state != RESTING) move_to(run, RESTING);
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
  uint64_t held = run->flags & HOST ? 0 : sandbox_weight(cell->sandbox);
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

int64_t run_next(const struct run *run) {
  int64_t next = run->state == FORKING || run->state == ENDING ? 0 : run->watch_at;
  if (run->deadline && (!next || run->deadline < next)) next = run->deadline;
  if (run->kill_at && (!next || run->kill_at < next)) next = run->kill_at;
  if (run->patience && run->state != ENDING && (!next || run->patience < next)) next = run->patience;
  return next;
}

void run_mind_the_time(struct cell *cell, struct run *run) {
  if (run->state == OVER) return;
  int64_t now = now_ms();
  if (run->deadline && now >= run->deadline) run_stop(cell, run, DEADLINE);
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
  if (run->kill_at && now_ms() >= run->kill_at) end(cell, run);
}
