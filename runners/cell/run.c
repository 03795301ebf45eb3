/* One run: its states, its beginning, its folder and its input. `words.c`, `end.c` and `watch.c` are the rest of it. */
#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
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

void run_move(struct run *run, enum state state) {
  if (!moves[run->state][state]) {
    fprintf(stderr, "cell: a run cannot go from state %d to %d\n", run->state, state);
    abort();
  }
  run->state = state;
  run->worked |= state == RUNNING;
}

struct run *run_find(const struct cell *cell, uint32_t id) {
  for (struct run *run = cell->runs; run; run = run->next)
    if (run->id == id && run->state != OVER) return run;
  return NULL;
}

void run_close(struct run *run) {
  input_close(&run->input);
  message_release(&run->held);
  close_fd(&run->output.fd);
  for (int at = 0; at < 2; at++) close_fd(&run->logs[at].fd);
}

void run_forget(struct cell *cell, struct run *run) {
  run_close(run);
  close_fd(&run->leader_fd);
  close_fd(&run->output.rest);
  close_fd(&run->folder);
  free(run->files.text);
  run->files = (struct names){0};
  if (cell->host == run) cell->host = NULL;
  run_move(run, OVER);
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
  run->dead = run->killed = run->left_behind = run->whole = run->goes_on = run->touched = false;
  run->worked = run->state == RUNNING;
  run->status = 0;
  run->linger_at = run->kill_at = run->patience = 0;
  int64_t now = now_ms();
  run->deadline = asked->deadline_ms && run->state != WAITING ? now + asked->deadline_ms : 0;
  run->watch_ms = FIRST_WATCH_MS;
  run->watch_at = now + FIRST_WATCH_MS;
  run->looks = run->results_told = 0;
  run->grace_ms = asked->grace_ms;
  run->linger_ms = asked->linger_ms;
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
  run->output.size = run->said_before = 0;
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

bool run_is_at_its_name(const struct cell *cell, const struct run *run) {
  struct stat ours, there;
  return !fstat(run->folder, &ours) && !fstatat(cell->folder, run->name, &there, AT_SYMLINK_NOFOLLOW) &&
         ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

/* It is gone from its name; whatever has been put there in its place is removed as what it is. */
bool run_give_folder_back(struct cell *cell, struct run *run) {
  if (run->folder < 0) return true;
  bool empty = folder_empty(run->folder, NULL), same = run_is_at_its_name(cell, run);
  close_fd(&run->folder);
  if (empty && same && !cell->has_spare_folder && !is_forked(run) && !renameat(cell->folder, run->name, cell->folder, SPARE))
    cell->has_spare_folder = true;
  else if (unlinkat(cell->folder, run->name, AT_REMOVEDIR))
    unlinkat(cell->folder, run->name, 0);
  return empty;
}

/* What a run has put beside its folder goes with it; the folders of others stay. */
bool run_empty_around(const struct cell *cell) {
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
void run_tell(struct cell *cell, const void *fixed, size_t size, const void *body, size_t length, int fd) {
  if (cell->unsent.size)
    message_write(cell->control, &cell->unsent.head, sizeof cell->unsent.head, cell->unsent.body, cell->unsent.size, -1);
  cell->unsent.size = 0;
  message_write(cell->control, fixed, size, body, length, fd);
}

static void tell_failed(struct cell *cell, uint32_t id, enum step step, int error, const char *words, size_t length) {
  struct failed_message told = {
      .head = {.kind = FAILED, .run = id, .body = (uint32_t)length}, .step = step, .error = (uint32_t)error};
  run_tell(cell, &told, sizeof told, words, length, -1);
}

void run_failed(struct cell *cell, struct run *run, enum step step, int error, const char *words, size_t length) {
  if (run->flags & HOST) close_fd(&cell->host_socket);
  run_give_folder_back(cell, run);
  uint32_t id = run->id;
  run_forget(cell, run);
  tell_failed(cell, id, step, error, words, length);
}

static void tell_started(struct cell *cell, const struct run *run) {
  if (!(run->flags & TELL)) return;
  struct failed_message told = {.head = {.kind = STARTED, .run = run->id}, .step = (uint32_t)run->leader};
  run_tell(cell, &told, sizeof told, NULL, 0, -1);
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
    run_move(run, run->flags & AHEAD ? WAITING : RUNNING);
}

void run_feed(struct run *run, struct message *message) {
  const char *body = message_body(message, sizeof(struct feed_message));
  if (run->state != WAITING || run->flags & HOST || !body) return;
  run->flags |= message->head.flags & TELL_RESULT;
  uint32_t ms = message->feed.deadline_ms;
  run->deadline = ms ? now_ms() + ms : 0;
  run->watch_ms = FIRST_WATCH_MS;
  run->watch_at = now_ms() + FIRST_WATCH_MS;
  run_move(run, RUNNING);
  run_linger(run);
  if (!(run->flags & CHANNEL)) take_input(run, message, body, message->head.body);
}

/* --- input and output */

void run_write_input(struct run *run) {
  input_write(&run->input);
  if (run->input.fd < 0) message_release(&run->held);
}
