/* One run after another: the state of the present one, and the loop over its descriptors, its deadline and the gateway. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum state {
  IDLE,    /* there is no run */
  WAITING, /* it was started ahead, and has no input yet */
  RUNNING,
  LEAVING, /* its leader is dead, and what it has left has a moment for its last words */
};

static const bool moves[][4] = {
    [IDLE] = {[WAITING] = true, [RUNNING] = true},
    [WAITING] = {[RUNNING] = true, [LEAVING] = true, [IDLE] = true},
    [RUNNING] = {[LEAVING] = true, [IDLE] = true},
    [LEAVING] = {[IDLE] = true},
};

struct cell {
  int control, folder, signals, isolated;
  enum state state;
  uint32_t run, flags;
  pid_t leader;
  int status;
  enum why why;
  bool left_behind, spoiled;
  int64_t deadline, kill_at, watch_at;
  uint32_t grace_ms, max_pids;
  uint64_t max_log, max_memory, log_bytes;
  struct usage usage;
  struct input input;
  struct message input_message; /* whose body the input is */
  struct output output;
  struct log logs[2];
};

static struct cell cell;
static struct message incoming;
static char *words[WORDS + 2];

int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void move_to(enum state state) {
  if (!moves[cell.state][state]) {
    fprintf(stderr, "cell: a run cannot go from state %d to %d\n", cell.state, state);
    abort();
  }
  cell.state = state;
}

static void tell_failed(uint32_t run, enum step step, int error) {
  struct failed_message told = {.head = {.kind = FAILED, .run = run}, .step = step, .error = (uint32_t)error};
  message_write(cell.control, &told, sizeof told, NULL, 0, -1);
}

/* --- a new run */

static bool make_pipe(int *ours, int *theirs, bool we_write) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return false;
  *ours = ends[we_write];
  *theirs = fcntl(ends[!we_write], F_DUPFD_CLOEXEC, 10); /* above those that it becomes */
  close(ends[!we_write]);
  if (*theirs < 0 || fcntl(*ours, F_SETFL, O_NONBLOCK)) {
    close_fd(ours);
    close_fd(theirs);
    return false;
  }
  return true;
}

static void close_all(int *fds, int count) {
  for (int at = 0; at < count; at++) close_fd(&fds[at]);
}

/* Our ends: input, result, and one or two logs. Theirs: what becomes descriptors 0 to 3. */
static bool make_pipes(int theirs[4]) {
  bool on_3 = cell.flags & RESULT_ON_3;
  cell.logs[0] = (struct log){.fd = -1, .stream = ERR};
  cell.logs[1] = (struct log){.fd = -1, .stream = OUT};
  return make_pipe(&cell.input.fd, &theirs[0], true) &&
         make_pipe(on_3 ? &cell.logs[1].fd : &cell.output.fd, &theirs[1], false) &&
         make_pipe(&cell.logs[0].fd, &theirs[2], false) &&
         (!on_3 || make_pipe(&cell.output.fd, &theirs[3], false));
}

static void close_ours(void) {
  input_close(&cell.input);
  message_release(&cell.input_message);
  close_fd(&cell.output.fd);
  for (int at = 0; at < 2; at++) close_fd(&cell.logs[at].fd);
}

/* What is to be read by the process stays where it is until it has been. A short one is in the room of the next message:
   what the pipe does not take at once is moved. */
static void take_input(const char *at, size_t left) {
  cell.input.at = at;
  cell.input.left = left;
  message_hand_over(&incoming, &cell.input_message);
  input_write(&cell.input);
  if (cell.input.left && !cell.input_message.mapped) {
    memcpy(cell.input_message.bytes, cell.input.at, cell.input.left);
    cell.input.at = cell.input_message.bytes;
  }
  if (cell.input.fd < 0) message_release(&cell.input_message);
}

static void begin(void) {
  const struct run_message asked = incoming.run;
  uint32_t run = asked.head.run;
  const char *body = incoming.size >= sizeof asked ? message_body(&incoming, sizeof asked) : NULL;
  if (cell.state != IDLE || !body || !message_words(&asked, body, words, sizeof words / sizeof *words)) {
    message_release(&incoming);
    tell_failed(run, WIRE, cell.state != IDLE ? EBUSY : EBADMSG);
    return;
  }
  cell.run = run;
  cell.flags = asked.head.flags;
  cell.why = BY_ITSELF;
  cell.status = 0;
  cell.left_behind = false;
  cell.usage = (struct usage){0};
  cell.log_bytes = 0;
  cell.grace_ms = asked.grace_ms;
  cell.max_log = asked.max_log;
  cell.max_memory = asked.max_memory;
  cell.max_pids = asked.max_pids;
  cell.output.size = 0;
  cell.output.bound = asked.max_output;
  int theirs[4] = {-1, -1, -1, -1};
  enum step step = PIPES;
  int error = 0;
  pid_t pid = -1;
  if (make_pipes(theirs)) {
    struct launch launch = {words, words + asked.argc + 1, theirs, cell.flags & RESULT_ON_3 ? 4 : 3, cell.folder};
    pid = start(&launch, &step, &error);
  } else {
    error = errno;
  }
  close_all(theirs, 4);
  if (pid < 0) {
    close_ours();
    message_release(&incoming);
    if (step >= FOLDER) sweep(cell.leader, &cell.status, &cell.usage); /* the child that could not exec */
    tell_failed(run, step, error);
    return;
  }
  cell.leader = pid;
  int64_t now = now_ms();
  cell.deadline = asked.deadline_ms ? now + asked.deadline_ms : 0;
  cell.kill_at = 0;
  cell.watch_at = now + WATCH_MS;
  struct failed_message told = {.head = {.kind = STARTED, .run = run}, .step = (uint32_t)pid};
  message_write(cell.control, &told, sizeof told, NULL, 0, -1);
  if (cell.flags & AHEAD) {
    message_release(&incoming);
    move_to(WAITING);
    return;
  }
  move_to(RUNNING);
  take_input(body + asked.words, asked.head.body - asked.words);
}

static void feed(void) {
  const char *body = message_body(&incoming, sizeof(struct feed_message));
  if (cell.state != WAITING || incoming.head.run != cell.run || !body) {
    message_release(&incoming);
    return;
  }
  cell.deadline = incoming.feed.deadline_ms ? now_ms() + incoming.feed.deadline_ms : 0;
  move_to(RUNNING);
  take_input(body, incoming.head.body);
}

/* --- the end of a run */

static void stop(enum why why) {
  if (cell.state == IDLE || cell.why != BY_ITSELF) return;
  cell.why = why;
  cell.deadline = 0;
  if (cell.grace_ms) {
    if (cell.state != LEAVING)
      kill(-cell.leader, SIGTERM);
    else
      signal_all(SIGTERM);
    cell.kill_at = now_ms() + cell.grace_ms;
  } else {
    cell.kill_at = now_ms();
  }
}

static void kill_now(enum why why) {
  if (cell.state == IDLE) return;
  if (cell.why == BY_ITSELF && cell.state != LEAVING) cell.why = why;
  cell.kill_at = now_ms();
}

static void read_log(struct log *log) {
  static char chunk[INLINE];
  ssize_t size = read(log->fd, chunk, sizeof chunk);
  if (size < 0) return;
  if (size == 0) {
    close_fd(&log->fd);
    return;
  }
  uint64_t before = cell.log_bytes;
  cell.log_bytes += (uint64_t)size;
  size_t told = (size_t)size;
  if (cell.max_log && before >= cell.max_log) return;
  if (cell.max_log && cell.log_bytes > cell.max_log) told = (size_t)(cell.max_log - before);
  struct head head = {.kind = LOG, .run = cell.run, .flags = log->stream, .body = (uint32_t)told};
  message_write(cell.control, &head, sizeof head, chunk, told, -1);
}

static void read_output(void) {
  if (!output_read(&cell.output)) {
    close_fd(&cell.output.fd);
    kill_now(OUTPUT);
  }
}

/* What is in the pipes now is all there will be: every writer is dead. */
static void read_rest(void) {
  while (cell.output.fd >= 0 && cell.why != OUTPUT) {
    uint64_t before = cell.output.size;
    read_output();
    if (cell.output.fd >= 0 && cell.output.size == before) break;
  }
  for (int at = 0; at < 2; at++)
    while (cell.logs[at].fd >= 0) {
      uint64_t before = cell.log_bytes;
      read_log(&cell.logs[at]);
      if (cell.logs[at].fd >= 0 && cell.log_bytes == before) break;
    }
}

static uint64_t microseconds(const struct timeval *time) { return (uint64_t)time->tv_sec * 1000000 + (uint64_t)time->tv_usec; }

static void tell_ended(void) {
  struct ended_message told = {
      .head = {.kind = ENDED, .run = cell.run},
      .pid = (uint32_t)cell.leader,
      .status = (uint32_t)cell.status,
      .why = cell.why,
      .spoiled = cell.spoiled,
      .left_behind = cell.left_behind,
      .user_us = microseconds(&cell.usage.user),
      .system_us = microseconds(&cell.usage.system),
      .peak_rss = cell.usage.peak,
      .log_bytes = cell.log_bytes,
  };
  told.head.body = (uint32_t)cell.output.size;
  if (cell.output.rest >= 0) {
    told.head.flags = BODY_IN_FD;
    fcntl(cell.output.rest, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    message_write(cell.control, &told, sizeof told, NULL, 0, cell.output.rest);
    close_fd(&cell.output.rest);
  } else {
    message_write(cell.control, &told, sizeof told, cell.output.first, cell.output.size, -1);
  }
}

static void finish(void) {
  if (!sweep(cell.leader, &cell.status, &cell.usage)) cell.spoiled = true;
  read_rest();
  close_ours();
  if (!folder_empty(cell.folder)) cell.spoiled = true;
  move_to(IDLE);
  tell_ended();
}

static void look_at_children(void) {
  bool living;
  bool ended = reap(cell.state == IDLE || cell.state == LEAVING ? -1 : cell.leader, &cell.status, &cell.usage, &living);
  if (cell.state == IDLE) return;
  if (ended) {
    cell.left_behind = living && cell.why == BY_ITSELF;
    move_to(LEAVING);
    input_close(&cell.input);
    if (!living || cell.why != BY_ITSELF)
      cell.kill_at = now_ms();
    else if (!cell.kill_at)
      cell.kill_at = now_ms() + LAST_WORDS_MS;
  } else if (cell.state == LEAVING && !living) {
    cell.kill_at = now_ms();
  }
}

static void watch(void) {
  uint32_t processes;
  uint64_t size = weigh(&processes);
  if (size > cell.usage.peak) cell.usage.peak = size;
  cell.watch_at = now_ms() + WATCH_MS;
  if ((cell.max_memory && size > cell.max_memory) || (cell.max_pids && processes > cell.max_pids)) kill_now(MEMORY);
}

/* --- the loop */

static int pause_ms(void) {
  if (cell.state == IDLE) return -1;
  int64_t next = cell.state == WAITING ? INT64_MAX : cell.watch_at;
  if (cell.deadline && cell.deadline < next) next = cell.deadline;
  if (cell.kill_at && cell.kill_at < next) next = cell.kill_at;
  if (next == INT64_MAX) return -1;
  int64_t left = next - now_ms();
  return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

static void mind_the_time(void) {
  if (cell.state == IDLE) return;
  int64_t now = now_ms();
  if (cell.deadline && now >= cell.deadline) stop(DEADLINE);
  if (cell.kill_at && now_ms() >= cell.kill_at) {
    finish();
    return;
  }
  if (cell.state != WAITING && now >= cell.watch_at && cell.max_memory + cell.max_pids) watch();
  if (cell.watch_at <= now) cell.watch_at = now + WATCH_MS;
}

/* False when the gateway is gone. */
static bool hear(void) {
  int read = message_read(cell.control, &incoming);
  if (read == 0) return false;
  if (read < 0) return true;
  bool ours = incoming.head.run == cell.run;
  switch ((enum kind)incoming.head.kind) {
    case RUN: begin(); break;
    case FEED: feed(); break;
    case STOP: if (ours) stop(STOPPED); break;
    case KILL: if (ours) kill_now(KILLED); break;
    default: break; /* what a later gateway may say */
  }
  message_release(&incoming);
  return true;
}

int serve(int control, int folder, int isolated) {
  cell = (struct cell){.control = control, .folder = folder, .isolated = isolated, .input = {.fd = -1}};
  cell.output.fd = cell.output.rest = cell.logs[0].fd = cell.logs[1].fd = cell.input_message.fd = -1;
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  sigprocmask(SIG_SETMASK, &children, NULL);
  cell.signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
  if (cell.signals < 0) return 71;
  for (;;) {
    struct pollfd fds[] = {
        {.fd = cell.control, .events = POLLIN},
        {.fd = cell.signals, .events = POLLIN},
        {.fd = cell.state == RUNNING ? cell.input.fd : -1, .events = POLLOUT},
        {.fd = cell.output.fd, .events = POLLIN},
        {.fd = cell.logs[0].fd, .events = POLLIN},
        {.fd = cell.logs[1].fd, .events = POLLIN},
    };
    if (poll(fds, sizeof fds / sizeof *fds, pause_ms()) < 0 && errno != EINTR) return 71;
    if (fds[0].revents && !hear()) break;
    if (fds[2].revents && cell.input.fd == fds[2].fd) {
      input_write(&cell.input);
      if (cell.input.fd < 0) message_release(&cell.input_message);
    }
    if (fds[3].revents && cell.output.fd == fds[3].fd) read_output();
    for (int at = 0; at < 2; at++)
      if (fds[4 + at].revents && cell.logs[at].fd == fds[4 + at].fd) read_log(&cell.logs[at]);
    if (fds[1].revents) {
      struct signalfd_siginfo seen[8];
      while (read(cell.signals, seen, sizeof seen) == (ssize_t)sizeof seen) {
      }
      look_at_children();
    }
    mind_the_time();
  }
  if (cell.state != IDLE) {
    sweep(cell.leader, &cell.status, &cell.usage);
    folder_empty(cell.folder);
  }
  return 0;
}
