/* cell --control FD --folder PATH [--own-processes [--own-network]]: serve the gateway.
   cell --self-test: say what this machine gives. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int usage(void) {
  fputs("usage: cell --control FD --folder PATH [--own-processes [--own-network]]\n"
        "       cell --self-test\n", stderr);
  return 2;
}

/* Try a wish in a child, since it may end up in another process. */
static int given(int wanted) {
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) _exit(isolate(wanted));
  int status = 0;
  return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

static int self_test(void) {
  int all = given(OWN_PROCESSES | OWN_NETWORK);
  printf("own processes (PID, mount, IPC namespaces): %s\n", all & OWN_PROCESSES ? "yes" : "no, a subreaper instead");
  printf("own network: %s\n", all & OWN_NETWORK ? "yes" : "no");
  return 0;
}

static int failed(const char *what) {
  fprintf(stderr, "cell: %s: %s\n", what, strerror(errno));
  return 71;
}

int main(int argc, char **argv) {
  int control = -1, wanted = 0;
  const char *path = NULL;
  for (int at = 1; at < argc; at++) {
    const char *value = at + 1 < argc ? argv[at + 1] : NULL;
    if (!strcmp(argv[at], "--self-test")) return self_test();
    if (!strcmp(argv[at], "--own-processes")) wanted |= OWN_PROCESSES;
    else if (!strcmp(argv[at], "--own-network")) wanted |= OWN_NETWORK;
    else if (!strcmp(argv[at], "--control") && value) control = atoi(argv[++at]);
    else if (!strcmp(argv[at], "--folder") && value) path = argv[++at];
    else return usage();
  }
  if (control < 0 || !path || (wanted & OWN_NETWORK && !(wanted & OWN_PROCESSES))) return usage();
  int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (folder < 0) return failed(path);
  if (fcntl(control, F_SETFD, FD_CLOEXEC)) return failed("--control");
  if (chdir("/")) return failed("/");
  signal(SIGPIPE, SIG_IGN);
  int isolated = isolate(wanted);
  prctl(PR_SET_DUMPABLE, 0); /* what is in our memory, the requests, is nobody else's to read */
  return serve(control, folder, isolated);
}
