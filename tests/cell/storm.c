/* Sixteen chains of processes: each link leaves the session, forks, and exits. Nothing that counts or names them by
   looking is fast enough. Ends by itself after a minute, which is longer than a test waits. */
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(void) {
  double until = now() + 60;
  for (int chain = 0; chain < 16; chain++)
    if (fork() == 0)
      while (now() < until) {
        setsid();
        if (fork() != 0) _exit(0);
      }
  while (now() < until) pause();
}
