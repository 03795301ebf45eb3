/* cell --control FD --folder PATH [--group PATH] [SANDBOX...]: serve the gateway.
   cell --run [--folder PATH] [SANDBOX...] -- PROGRAM [ARGUMENT...]: run one program, to try a sandbox by hand.
   cell --empty PATH: remove a folder that a cell has left.
   cell --self-test: say what this machine gives. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

static int usage(void) {
  fputs("usage: cell --control FD --folder PATH [--group PATH] [SANDBOX...]\n"
        "       cell --run [--folder PATH] [SANDBOX...] -- PROGRAM [ARGUMENT...]\n"
        "       cell --empty PATH\n"
        "       cell --self-test\n"
        "sandbox: --namespaces --no-network --private-tmp BYTES --hide PATH --show PATH --restrict --read PATH\n"
        "         --write PATH --filter --user UID:GID --max-pids N --max-disk BYTES --oom N\n", stderr);
  return 2;
}

static int failed(const char *what) {
  fprintf(stderr, "cell: %s: %s\n", what, strerror(errno));
  return 71;
}

/* Have the folder locked for as long as the cell, and who waits for it, live: nobody takes it for one that was left. */
static bool hold(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  return fd >= 0 && !flock(fd, LOCK_SH | LOCK_NB);
}

static void sandbox_init(struct sandbox *sandbox) {
  *sandbox = (struct sandbox){.folder = -1, .oom = -1, .landlock = -1, .queues = -1};
  for (int at = 0; at < TMPS; at++) sandbox->tmps[at].fd = -1;
}

static bool open_folder(struct sandbox *sandbox, const char *path) {
  sandbox->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  return sandbox->folder >= 0 && (sandbox->folder_path = realpath(path, NULL));
}

/* --- the self-test */

static const struct {
  unsigned wanted, other;
  const char *name, *how, *otherwise;
} steps[] = {
    {NAMESPACES, 0, "namespaces", "", NULL},
    {USER_NAMESPACE, 0, "user namespace", "", NULL},
    {NO_NETWORK, NO_NETWORK_FILTERED, "network", " by namespace", " by filter"},
    {PRIVATE_TMP, 0, "private tmp", "", NULL},
    {HIDDEN, HIDDEN_BY_LANDLOCK, "hiding", " by mounts", " by landlock"},
    {RESTRICTED, 0, "restricting", " by landlock", NULL},
    {FILTERED, 0, "filter", " by seccomp", NULL},
    {OTHER_USER, 0, "user", "", NULL},
};

static void describe(const struct sandbox *all, const struct sandbox *user) {
  for (size_t at = 0; at < sizeof steps / sizeof *steps; at++) {
    const struct sandbox *one = steps[at].wanted == OTHER_USER ? user : all;
    int bit = __builtin_ctz(steps[at].wanted);
    if (one->got & steps[at].wanted)
      printf("%s: yes%s%s\n", steps[at].name, *steps[at].how ? "," : "", steps[at].how);
    else if (steps[at].other && one->got & steps[at].other)
      printf("%s: yes,%s\n", steps[at].name, steps[at].otherwise);
    else if (steps[at].wanted == USER_NAMESPACE && one->got & NAMESPACES)
      printf("%s: no, not needed\n", steps[at].name);
    else if (one->refused[bit])
      printf("%s: no, %s\n", steps[at].name, strerror(one->refused[bit]));
    else
      printf("%s: no, %s\n", steps[at].name, steps[at].wanted == OTHER_USER ? "only root can" : "it needs namespaces");
  }
  int version = landlock_version();
  if (version) printf("landlock: yes, version %d\n", version);
  else printf("landlock: no, this kernel has none or keeps it off\n");
}

/* Enter a sandbox in a child, since it may end up in another process, and be told what it has got. */
static struct sandbox tried(unsigned wanted) {
  struct sandbox sandbox;
  int ends[2];
  sandbox_init(&sandbox);
  if (pipe2(ends, O_CLOEXEC)) return sandbox;
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    sandbox.wanted = wanted;
    sandbox.tmp_bytes = 1 << 20;
    mark(&sandbox, HIDE, "/root");
    bool entered = open_folder(&sandbox, "/usr") && sandbox_enter(&sandbox);
    _exit(!entered || write(ends[1], &sandbox, sizeof sandbox) != (ssize_t)sizeof sandbox);
  }
  close(ends[1]);
  if (pid < 0 || read(ends[0], &sandbox, sizeof sandbox) != (ssize_t)sizeof sandbox) sandbox_init(&sandbox);
  close(ends[0]);
  while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
  }
  return sandbox;
}

static int self_test(void) {
  struct sandbox all = tried(NAMESPACES | NO_NETWORK | PRIVATE_TMP | HIDDEN | RESTRICTED | FILTERED);
  struct sandbox user = tried(0);
  if (!geteuid()) user.got |= OTHER_USER;
  describe(&all, &user);
  return 0;
}

/* --- by hand */

static int empty(const char *path) {
  int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  bool done = folder >= 0 && folder_empty(folder, NULL) && !rmdir(path);
  close_fd(&folder);
  return done ? 0 : failed(path);
}

static int run_one(const struct sandbox *sandbox, char **argv) {
  extern char **environ;
  static const int fds[] = {0, 1, 2};
  const struct launch launch = {argv, environ, fds, 3, sandbox->folder, sandbox};
  enum step step;
  int error, status = 0;
  pid_t pid = start(&launch, &step, &error);
  if (pid < 0) {
    fprintf(stderr, "cell: %s: step %d: %s\n", argv[0], step, strerror(error));
    return 126;
  }
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  do signal_all(SIGKILL);
  while (waitpid(-1, NULL, 0) > 0);
  if (!sandbox_empty(sandbox)) fputs("cell: something is left\n", stderr);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The control group that was made for us: before there is anything else, so that all of it is born there. Where that is
   not to be, there is none. */
static void join(const char *group) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/cgroup.procs", group);
  int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file >= 0 && write(file, "0", 1) < 0) errno = 0;
  close_fd(&file);
}

int main(int argc, char **argv) {
  int control = -1;
  bool by_hand = false;
  const char *path = NULL, *group = NULL;
  char **program = NULL;
  struct sandbox sandbox;
  sandbox_init(&sandbox);
  for (int at = 1; at < argc && !program; at++) {
    const char *value = at + 1 < argc ? argv[at + 1] : NULL;
    int taken = sandbox_option(&sandbox, argv[at], value);
    if (taken) at += taken - 1;
    else if (!strcmp(argv[at], "--self-test")) return self_test();
    else if (!strcmp(argv[at], "--empty") && value) return empty(value);
    else if (!strcmp(argv[at], "--run")) by_hand = true;
    else if (!strcmp(argv[at], "--control") && value) control = atoi(argv[++at]);
    else if (!strcmp(argv[at], "--folder") && value) path = argv[++at];
    else if (!strcmp(argv[at], "--group") && value) group = argv[++at];
    else if (!strcmp(argv[at], "--") && value) program = argv + at + 1;
    else return usage();
    if (taken < 0) return usage();
  }
  if (by_hand ? !program : control < 0 || !path || program) return usage();
  if (group) join(group);
  if (!open_folder(&sandbox, path ? path : ".")) return failed(path ? path : ".");
  if (!by_hand && fcntl(control, F_SETFD, FD_CLOEXEC)) return failed("--control");
  if (!by_hand && !hold(path)) return failed(path);
  if (chdir("/")) return failed("/");
  sandbox.serves = !by_hand;
  if (!by_hand) signal(SIGPIPE, SIG_IGN);
  if (!sandbox_enter(&sandbox)) return failed("sandbox");
  return by_hand ? run_one(&sandbox, program) : serve(control, path, &sandbox);
}
