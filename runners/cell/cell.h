/* A cell runs one thing at a time for the gateway, and is the parent of all that comes of it. See README.md. */
#ifndef CELL_H
#define CELL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
  INLINE = 64 << 10,      /* bytes of a body that travel in their message; larger ones come as a memfd */
  MESSAGE = 128 << 10,    /* bytes of the longest message */
  WORDS = 4096,           /* arguments and variables of one run */
  LAST_WORDS_MS = 250,    /* what outlives the leader has so long to say something */
  WATCH_MS = 100,         /* between two looks at the memory of a run */
  SWEEP_MS = 5000,        /* a cell in which something cannot be killed within this is thrown away */
  REAPED_AT_ONCE = 256,   /* then the deadline and the gateway have their turn */
};

/* --- message.c: the wire. Integers are the machine's own: both ends are on one. */

enum kind {
  RUN = 1,   /* gateway: start a process; flags say whether its input is here already */
  FEED,      /* gateway: the input of a process that was started ahead */
  STOP,      /* gateway: SIGTERM to the run, and SIGKILL after its grace */
  KILL,      /* gateway: SIGKILL to all of the run */
  STARTED,   /* cell: the process has been started */
  FAILED,    /* cell: it could not be */
  LOG,       /* cell: a batch of log */
  ENDED,     /* cell: all of the run is dead and reaped; the folder is empty */
};

enum flag {
  RESULT_ON_3 = 1 << 0,  /* the result is read from descriptor 3, and stdout is log */
  AHEAD = 1 << 1,        /* the input comes later, as a FEED */
  BODY_IN_FD = 1 << 2,   /* the body is the memfd that comes with the message */
};

enum stream { OUT = 1, ERR = 2 };

enum why { BY_ITSELF, DEADLINE, STOPPED, KILLED, OUTPUT, MEMORY };

enum step { NO_STEP, PIPES, FORK, FOLDER, DESCRIPTORS, EXEC, WIRE };

struct head {
  uint32_t kind, run, flags, body; /* `body`: bytes that follow the fixed part, or are in the memfd */
};

/* After the fixed part of a RUN come argc words, then envc, each with its NUL, then the input. */
struct run_message {
  struct head head;
  uint32_t argc, envc, words; /* bytes of all words */
  uint32_t deadline_ms, grace_ms; /* from now on; 0: none */
  uint32_t max_pids;
  uint64_t max_output, max_log, max_memory; /* bytes; 0: unbounded */
};

struct feed_message {
  struct head head;
  uint32_t deadline_ms, reserved;
};

struct failed_message {
  struct head head;
  uint32_t step, error; /* what was being done, and its errno */
};

struct ended_message {
  struct head head; /* the body is the result */
  uint32_t pid, status, why, spoiled, left_behind, reserved;
  uint64_t user_us, system_us, peak_rss, log_bytes;
};

struct message {
  union {
    struct head head;
    struct run_message run;
    struct feed_message feed;
    char bytes[MESSAGE];
  };
  size_t size;
  int fd; /* that came with it, -1 for none */
  const char *mapped;
  size_t mapped_size;
};

/* 1: one was read, 0: the gateway is gone, -1: there is none now, or it was none and has been dropped. */
int message_read(int control, struct message *into);
/* The body of a message, in place or mapped; NULL when it is not what its head says. `message_release` ends it. */
const char *message_body(struct message *message, size_t fixed);
/* Cut the words of a RUN's body apart: arguments, NULL, variables, NULL. False when they are not what its head says. */
bool message_words(const struct run_message *asked, const char *body, char **words, size_t room);
void message_release(struct message *message);
/* Have a message's descriptor and mapping kept by another one, which has none. */
void message_hand_over(struct message *from, struct message *to);
/* Waits for a gateway that does not read; false when it is gone. */
bool message_write(int control, const void *fixed, size_t size, const void *body, size_t length, int fd);

/* --- start.c: from the fork to the exec */

struct launch {
  char *const *argv, *const *envp;
  const int *fds; /* what becomes descriptors 0, 1, 2 and, if there are four, 3 */
  int nfds;
  int folder; /* a descriptor of the working directory */
};

/* The pid, or -1 with the step and errno that failed. */
pid_t start(const struct launch *launch, enum step *step, int *error);

/* --- pipes.c: input and output */

struct input {
  int fd;
  const char *at;
  size_t left;
};

struct output {
  int fd;
  char first[INLINE]; /* what there is of a result that fits into a message */
  int rest;           /* the memfd of a larger one, -1 for none */
  uint64_t size, bound;
};

struct log {
  int fd;
  enum stream stream;
  bool cut; /* the bound was told */
};

void input_write(struct input *input);
void input_close(struct input *input);
/* False when it is over its bound. */
bool output_read(struct output *output);
void close_fd(int *fd);

/* --- sweep.c: the end of processes */

struct usage {
  struct timeval user, system;
  uint64_t peak;
};

void usage_add(struct usage *usage, const struct rusage *spent);
/* Reap some of what is dead: true when the leader was among it, whose wait status goes to `status`. `living` says whether
   there is, or may be, anything left. */
bool reap(pid_t leader, int *status, struct usage *usage, bool *living);
/* A signal to all that is ours. */
void signal_all(int number);
/* SIGKILL to all, and reap: false when something will not die. */
bool sweep(pid_t leader, int *status, struct usage *usage);

/* --- memory.c */

/* Resident bytes of everything below this cell, and how many processes they are. */
uint64_t weigh(uint32_t *processes);

/* --- folder.c */

/* Remove what is in a folder, following nothing: false when something is left. */
bool folder_empty(int folder);

/* --- namespaces.c */

enum {
  OWN_PROCESSES = 1 << 0, /* PID, mount and IPC namespaces: what is outside is neither seen nor signalled */
  OWN_NETWORK = 1 << 1,
};

/* Become, in a child, PID 1 of namespaces of one's own: returns in the child with what there is, never in the parent.
   Where the kernel refuses, it returns in the calling process, which is then a subreaper, with less. */
int isolate(int wanted);

/* --- run.c */

/* Serve runs until the gateway's end of the socket is closed. */
int serve(int control, int folder, int isolated);

int64_t now_ms(void);

#endif
