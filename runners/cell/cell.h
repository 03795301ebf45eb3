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
  DESCRIPTORS_SENT = 4,   /* with one message, at most */
  OTHERS = 1024,          /* processes of a run that are known beside its leader */
  TAIL = 8 << 10,         /* bytes of the end of a log that are told though they are over its bound */
  LAST_WORDS_MS = 250,    /* what outlives the leader has so long to say something */
  ANSWER_MS = 2000,       /* or so long, when the gateway may be about to say that it has had its answer */
  RESULTS_TOLD = 64,      /* of one run, before it is over */
  FIRST_WATCH_MS = 10,    /* the first look at the memory of a run; each later one after twice the time, */
  WATCH_MS = 100,         /* up to this, */
  DISK_EVERY = 4,         /* looks there is one at the disk too */
  IDLE_WATCH_MS = 1000,   /* or to this while it has no request */
  SWEEP_MS = 5000,        /* a cell in which something cannot be killed within this is thrown away */
  STUCK_MS = 5000,        /* a host that does not say within this what has become of a child is killed */
  STORM = 128,            /* detached processes that die within STORM_MS: then those that live are stopped */
  STORM_MS = 250,
  REAPED_AT_ONCE = 256,   /* then the deadline and the gateway have their turn */
  HEARD_AT_ONCE = 64,     /* of what a host says */
  LAST_WORDS = 4096,      /* of a host that is dead */
};

/* --- message.c: the wire. Integers are the machine's own: both ends are on one. */

enum kind {
  RUN = 1,   /* gateway: start a process; flags say whether its input is here already */
  FEED,      /* gateway: the input of a process that was started ahead, or its deadline alone */
  STOP,      /* gateway: SIGTERM to the run, and SIGKILL after its grace */
  KILL,      /* gateway: SIGKILL to all of the run */
  STARTED,   /* cell: the process has been started */
  FAILED,    /* cell: it could not be */
  LOG,       /* cell: a batch of log */
  ENDED,     /* cell: all of the run is dead and reaped; the folder is empty */
  READY,     /* cell: once, what it has */
  RESULT,    /* cell: what there is of the result so far; empty: something came before there was a request */
  GO_ON,     /* gateway: that was the answer; what outlives the leader may live until the deadline */
  REST,      /* gateway: kill what lives beside the leader, and empty the folder; with KEEP, note what is there to stay */
  MEASURE,   /* gateway: say what the run takes */
  MEASURED,  /* cell: that; also when it has come to rest */
  TOLD,      /* cell: a host's own words, passed on */
  LEAVE,     /* gateway: there is no further run; without that word, the end of its socket means that it is gone */
};

enum flag {
  RESULT_ON_3 = 1 << 0,  /* the result is read from descriptor 3, and stdout is log */
  AHEAD = 1 << 1,        /* the input comes later, as a FEED */
  BODY_IN_FD = 1 << 2,   /* the body is the memfd that comes with the message */
  TELL = 1 << 3,         /* say when it has been started */
  TELL_RESULT = 1 << 4,  /* and what it has written whenever that may be an answer */
  CHANNEL = 1 << 5,      /* its stdin and descriptor 3 come with the message and are the gateway's: it stays for many requests */
  HOST = 1 << 6,         /* its descriptor 3 is a socket of the cell's, and it forks */
  FORKED = 1 << 7,       /* have the host fork it; of its words, the variables count */
  KEEP = 1 << 8,
  IN_TIME = 1 << 9,      /* for the host: it is forked well before its input */
  RESULT_IN_LINE = 1 << 10, /* a line break ends the result, whoever has its channel open still */
};

enum stream { OUT = 1, ERR = 2 };

enum why { BY_ITSELF, DEADLINE, STOPPED, KILLED, OUTPUT, MEMORY, PROCESSES, DISK, LINGERED };

/* What had come of a result by the time that its run was stopped. */
enum said { PERHAPS_A_PART, NOTHING_SINCE /* nor was it ended */, ALL };

enum step { NO_STEP, PIPES, FORK, FOLDER, DESCRIPTORS, EXEC, WIRE, SANDBOX, IN_HOST };

struct head {
  uint32_t kind, run, flags, body; /* `body`: bytes that follow the fixed part, or are in the memfd */
};

/* After the fixed part of a RUN come argc words, then envc, each with its NUL, then the input. */
struct run_message {
  struct head head;
  uint32_t argc, envc, words; /* bytes of all words */
  uint32_t deadline_ms, grace_ms; /* from now on; 0: none */
  uint32_t linger_ms;             /* what it has to end, from the end of its result on */
  uint32_t max_pids, reserved;
  uint64_t max_output, max_log, max_memory; /* bytes; 0: unbounded */
};

struct feed_message {
  struct head head;
  uint32_t deadline_ms, reserved;
};

struct ready_message {
  struct head head;
  uint32_t got, reserved; /* of enum wish */
};

struct failed_message {
  struct head head; /* the body may be words of a host */
  uint32_t step, error; /* what was being done, and its errno */
};

struct ended_message {
  struct head head; /* the body is the result */
  uint32_t pid, status, why, spoiled, left_behind, said; /* of enum why and enum said */
  uint64_t user_us, system_us, peak_rss, log_bytes;
};

enum rested {
  CAME_TO_REST = 1,
  KILLED_SOME = 2,  /* of what was started since it was told what may stay */
  REMOVED_SOME = 4, /* of what lay in its folders */
};

struct measured_message {
  struct head head; /* flags: of enum rested */
  uint32_t clean, processes;
  uint64_t user_us, system_us, size, peak; /* `size`: resident bytes of the leader now */
};

struct message {
  union {
    struct head head;
    struct run_message run;
    struct feed_message feed;
    char bytes[MESSAGE];
  };
  size_t size;
  int fds[DESCRIPTORS_SENT]; /* that came with it */
  int nfds;
  const char *mapped;
  size_t mapped_size;
};

/* 1: one was read, 0: the other end is gone, -1: there is none now, or it was none and has been dropped. */
int message_read(int socket, struct message *into);
/* The body of a message, in place or mapped; NULL when it is not what its head says. `message_release` ends it. */
const char *message_body(struct message *message, size_t fixed);
/* Cut the words of a RUN apart, arguments and variables each with a NULL after them: false when they are not what its
   head says. `room` counts pointers. */
bool message_words(const struct run_message *asked, const char *body, char **words, size_t room);
void message_release(struct message *message);
/* Have a message's mapping kept by another one, which has none. */
void message_hand_over(struct message *from, struct message *to);
/* 1: sent, 0: there is no room now, -1: the other end is gone. */
int message_send(int socket, const void *fixed, size_t size, const void *body, size_t length, const int *fds, int nfds);
/* Waits for a gateway that does not read; false when it is gone. */
bool message_write(int socket, const void *fixed, size_t size, const void *body, size_t length, int fd);

/* Names in a folder, each with its NUL. */
struct names {
  char *text;
  size_t size;
};

/* --- sandbox.c: what is run is kept from what is not its own. What is wished for and cannot be had is left out. */

enum wish { /* the gateway knows these bits: `Step` in gateway/sandbox.py */
  NAMESPACES = 1 << 0,          /* PID, mount and IPC namespaces: what is outside is neither seen nor signalled */
  USER_NAMESPACE = 1 << 1,      /* by way of a user namespace */
  NO_NETWORK = 1 << 2,          /* a network namespace with nothing but lo */
  PRIVATE_TMP = 1 << 3,
  HIDDEN = 1 << 4,              /* what is to be hidden is covered, what is to be shown is read-only */
  HIDDEN_BY_LANDLOCK = 1 << 5,  /* instead: it cannot be read or written */
  RESTRICTED = 1 << 6,          /* Landlock as an allow-list */
  FILTERED = 1 << 7,            /* seccomp, capabilities, no_new_privs */
  OTHER_USER = 1 << 8,
  PROCESSES_BOUNDED = 1 << 9,  /* RLIMIT_NPROC counts this cell alone */
  NO_NETWORK_FILTERED = 1 << 10, /* instead: TCP refused by Landlock, sockets other than Unix ones by seccomp */
  SIGNALS_SCOPED = 1 << 11,     /* where there are no namespaces: Landlock lets no signal out */
};

/* A path that is treated specially. Of two for one path the later kind holds. */
enum kind_of_mark {
  SYSTEM,  /* may be read by strict */
  DEVICE,  /* may be written by all */
  MASK,    /* hidden by us, where nobody has asked for it */
  TMP, COVER, SHOW, WRITE,
  HIDE,
  PRIVATE, /* the folder */
};

struct mark {
  enum kind_of_mark kind;
  const char *given; /* as it was asked for */
  char *path;        /* without links */
  int source, cover; /* descriptors: of what is there, and of what has been mounted over it; -1 for none */
};

/* What has been mounted at a path. A file that is written anew and renamed takes its cover away. */
struct guard {
  char *path;
  uint64_t device, inode;
};

enum { TMPS = 3 };

struct tmp {
  int fd;
  uint64_t device, inodes; /* inodes: when nothing is in it */
  struct names keep; /* what may stay */
  uint64_t kept;     /* inodes, with that */
};

struct sandbox {
  unsigned wanted, got;
  int folder;
  char *folder_path; /* without links; until it has been entered, as the marks */
  struct mark *marks;
  int count, room;
  struct guard *guards;
  int guarded;
  uint64_t tmp_bytes, max_disk;
  uint32_t max_pids;
  int oom; /* oom_score_adj, -1: as it is */
  uid_t user;
  gid_t group;
  int landlock; /* a ruleset that what is run is put under; -1: the cell itself is already, or there is none */
  int queues;   /* the folder of POSIX message queues, -1: not our own */
  bool keeps_ipc;
  bool serves; /* a gateway, whose the folder is: it goes with the cell */
  struct tmp tmps[TMPS];
  int refused[16]; /* errno by number of the wish's bit */
};

/* Take an option: how many words it was, 0 when it is none of the sandbox's, -1 when it is wrong. */
int sandbox_option(struct sandbox *sandbox, const char *name, const char *value);
/* In the cell, once: it returns in another process than it was called in when there are namespaces. False: the
   folder cannot be had. From then on the cell itself is under the filter (no clone3, no mount); it keeps its
   capabilities. */
bool sandbox_enter(struct sandbox *sandbox);
/* In what is going to be run, just before its exec: 0 or errno; ESTALE: what was hidden has been replaced outside,
   and is to be seen; only another cell can hide it. Allocates nothing. */
int sandbox_confine(const struct sandbox *sandbox);
/* Between runs, when nothing lives: false when something cannot be removed. */
bool sandbox_empty(const struct sandbox *sandbox);
/* Have `sandbox_empty` leave what there is now, until it is called with nothing left to stay: of a process that stays. */
void sandbox_keep(struct sandbox *sandbox, bool keep);
/* Bytes in private tmp folders and in System V shared memory. */
uint64_t sandbox_weight(const struct sandbox *sandbox);
/* Have a folder belong to whoever is run. */
bool sandbox_own(const struct sandbox *sandbox, int folder);
/* Whether a folder, which so many runs write to, is over its bound with so many bytes more. */
bool sandbox_disk_full(const struct sandbox *sandbox, int folder, unsigned runs, uint64_t more);
/* Whether it is what was there before that is mounted. */
static inline bool is_shown(enum kind_of_mark kind) { return kind == SHOW || kind == WRITE || kind == PRIVATE; }
static inline bool is_hidden(enum kind_of_mark kind) { return kind == HIDE || kind == MASK; }
/* Mark a path; false when there is nothing there. */
bool mark(struct sandbox *sandbox, enum kind_of_mark kind, const char *path);
void refused(struct sandbox *sandbox, enum wish wish);
/* Whether `path` lies below `above`, or is it. */
bool is_below(const char *path, const char *above);

/* --- namespaces.c */

/* Become, in a child, PID 1 of namespaces of one's own: returns in the child, never in the parent, with what there
   is. Where the kernel refuses, it returns in the calling process, which is then a subreaper, with less. */
void isolate(struct sandbox *sandbox);

/* --- mounts.c: in a mount namespace of the cell's own */

/* Mount all that is marked. False when the folder cannot be had. */
bool mounts_make(struct sandbox *sandbox);

/* --- landlock.c */

/* A ruleset of what the sandbox needs, -1 with errno; ENOMSG: it needs none. Sets `got`. */
int landlock_make(struct sandbox *sandbox);
/* 0 or errno. */
int landlock_enter(int ruleset);
/* What the kernel knows of it; 0: nothing. */
int landlock_version(void);

/* --- seccomp.c */

/* Put the caller, and all that comes of it, under the filter that the sandbox needs: false with errno. */
bool filter_enter(const struct sandbox *sandbox);

/* --- tmp.c: what outlives processes */

bool tmp_empty(const struct sandbox *sandbox);
void tmp_keep(struct sandbox *sandbox, bool keep);
uint64_t tmp_weight(const struct sandbox *sandbox);

/* --- start.c: from the fork to the exec */

struct launch {
  char *const *argv, *const *envp;
  const int *fds; /* what becomes descriptors 0, 1, 2 and, if there are four, 3 */
  int nfds;
  int folder; /* a descriptor of the working directory */
  const struct sandbox *sandbox;
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
  char last;
  int rest;           /* the memfd of a larger one, -1 for none */
  uint64_t size, bound;
};

struct log {
  int fd;
  enum stream stream;
  uint64_t size; /* bytes that have come of it, told or not */
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
/* A signal to all that is ours. */
void signal_all(int number);
/* Whether a process is dead, and not reaped yet, or gone. */
bool is_zombie(pid_t pid);
/* 0 when it is gone. */
pid_t parent_of(pid_t pid);
/* The children of a process' first thread, dead ones included, the youngest where there are more than `room`: how many
   of them are in `pids`. */
size_t children_of(pid_t parent, pid_t *pids, size_t room);
/* Our children, dead ones included: how many of them are in `pids`. */
size_t children(pid_t *pids, size_t room);
/* SIGKILL to what lives below a process, but for itself and `keep`: how many there were. */
size_t kill_below(pid_t root, const pid_t *keep, size_t nkeep);
/* Whose child a process is, 0 when it is gone. */
pid_t parent_of(pid_t pid);
/* What lives below a process. */
size_t list_below(pid_t root, pid_t *pids, size_t room);

/* --- memory.c */

/* Bytes of memory of a process and everything below it (0: of everything below this cell), without what is in
   `sandbox_weight`, and how many processes they are. Exact when it may be over the bound (0: none), otherwise an
   estimate. */
uint64_t weigh(const struct sandbox *sandbox, pid_t root, uint64_t bound, uint32_t *processes);
/* Have the pages of our own program go that are not used any more: they come back when they are. */
void forget_text(void);
/* Bytes of disk of files that a process and everything below it (0: everything below this cell) hold open, and that have
   no name any more. */
uint64_t unlinked_use(const struct sandbox *sandbox, pid_t root);
/* Bytes of disk below a folder; `over`: more than the bound (0: none), or too many files to look at. Some 1 us a
   file. */
uint64_t disk_use(int folder, bool *over, uint64_t bound);

/* --- measure.c */

/* What one process has taken so far, its reaped children included; `size` and `peak` are resident bytes of its own. */
struct spent {
  uint64_t user_us, system_us, size, peak;
  uint32_t processes;
};

struct spent measure(pid_t pid);

/* --- folder.c */

/* Remove what is in a folder but for `keep` (or NULL), following nothing: false when something is left. */
bool folder_empty(int folder, const struct names *keep);
/* How many files and folders were removed so far. */
extern unsigned folder_removed;
/* A folder in a folder, also when it may not be read yet; -1 with errno. Follows nothing, since what lives may put a
   link there meanwhile. */
int folder_open(int above, const char *name);
/* Remove what is written on a folder: attributes, and whom else it is open to. */
bool folder_bare(int folder);
/* What is in a folder now: false when it cannot be read. */
bool folder_names(int folder, struct names *into);
bool names_have(const struct names *names, const char *name);

/* --- run.c, words.c, end.c, watch.c: one run, from its message to its end */

enum state {
  FORKING, /* the host has been asked for it */
  WAITING, /* it has no request yet, or has come to rest after one */
  RUNNING,
  RESTING, /* what lives beside its leader is being killed */
  LEAVING, /* its leader is dead, and what it has left has a moment for its last words */
  ENDING,  /* it was forked, and is being killed */
  OVER,
  STATES,
};

struct run {
  struct run *next;
  uint32_t id, flags;
  enum state state;
  enum why why;
  pid_t leader;   /* 0: not yet */
  int leader_fd;  /* a pidfd of a leader that is the host's child, -1 for none */
  bool dead;      /* the leader is, and its status is known */
  bool killed;    /* something was that it had started, since it last came to rest */
  bool left_behind, whole, goes_on, touched, worked; /* worked: it has had a request */
  int status;
  int64_t deadline, linger_at, kill_at, watch_at, patience; /* 0: none */
  int64_t watch_ms; /* the time from the last look to the next one */
  uint32_t looks, results_told;
  uint32_t grace_ms, linger_ms, max_pids;
  uint64_t said_before; /* bytes of its result, when it was stopped */
  uint64_t max_log, max_memory, log_bytes;
  struct usage usage;
  int folder;      /* its working directory */
  char name[16];   /* of its folder below the cell's */
  pid_t others[OTHERS]; /* forked: what has outlived its leader; staying: what may stay beside it */
  size_t nothers;
  struct names files;   /* staying: what may stay in its folder */
  struct input input;
  struct message held;  /* whose body the input is */
  struct output output;
  struct log logs[2];
  char tail[TAIL]; /* the end of what came of stderr and was not told */
  size_t tail_size;
};

struct cell {
  int control, signals, folder;
  const char *path;   /* of the folder */
  struct sandbox *sandbox;
  struct run *runs, *spare;
  struct run *host;   /* the one that forks, while it lives */
  pid_t hosts_own[OTHERS]; /* what it had started itself by the time that it had imported */
  size_t nhosts_own;
  int host_socket;
  bool has_spare_folder;
  bool spoiled;       /* something could not be killed, or removed */
  bool may_leave;     /* the gateway has no further use for it */
  uint32_t detached;  /* processes that have died since `counted_at`, and whose parents had died before */
  int64_t counted_at;
  bool childless;     /* at the latest look */
  bool more_dead;     /* than were reaped at once */
  struct { struct head head; char body[INLINE]; size_t size; } unsent; /* log that the gateway had no room for */
};

void run_begin(struct cell *cell, struct message *message);
void run_feed(struct run *run, struct message *message);
void run_stop(struct cell *cell, struct run *run, enum why why);
void run_kill(struct run *run, enum why why);
void run_go_on(struct run *run);
void run_rest(struct cell *cell, struct run *run, bool keep);
void run_measure(struct cell *cell, struct run *run);
/* What the times say: the deadline, the end of a grace, the next look at its memory. */
void run_mind_the_time(struct cell *cell, struct run *run);
/* When something is to be done next, 0 for never. */
int64_t run_next(const struct run *run);
void run_read_log(struct cell *cell, struct run *run, struct log *log);
void run_read_output(struct cell *cell, struct run *run);
void run_write_input(struct run *run);
/* Its leader is dead: `status` is a wait status. */
void run_leader_died(struct cell *cell, struct run *run, int status);
/* The gateway is gone: everything is killed. */
void run_end_all(struct cell *cell);
void run_failed(struct cell *cell, struct run *run, enum step step, int error, const char *words, size_t length);
struct run *run_find(const struct cell *cell, uint32_t id);
/* Reap some of what is dead: true when there may be more of it. */
bool reap(struct cell *cell);
/* What the host has started by itself until now may live as long as it does. */
void run_know_hosts_own(struct cell *cell);
/* The host has forked it. */
void run_forked(struct cell *cell, struct run *run, pid_t leader, int leader_fd);
/* Send the log that the gateway had no room for. */
void flush_log(struct cell *cell);

/* --- host.c: a process that forks others for us */

/* Ask for a child that gets these streams: false with errno. */
bool host_fork(struct cell *cell, const struct run *run, char *const *envp, const int *streams, int nstreams);
/* What the host says: so many messages at most. */
void host_hear(struct cell *cell, int most);
/* It is dead: those that it has not forked yet never will be, and those that it has reaped are over. */
void host_died(struct cell *cell);

/* --- serve.c */

/* Serve runs until the gateway's end of the socket is closed. */
int serve(int control, const char *path, struct sandbox *sandbox);

enum { LEFT = 0, GATEWAY_GONE = 3 }; /* what it returns, and the cell with it */
/* Remove a cell's folder; that of its gateway too, if nothing is left in it and `gone`. */
void remove_folders(const char *path, bool gone);

int64_t now_ms(void);

#endif
