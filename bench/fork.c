/* What a fork costs on this machine, whoever forks: prints the milliseconds that fork, exit and wait take in a process of
 * so many MiB, and the microseconds more for each page that the child writes to. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 1000, TIMES = 300 };

static double milliseconds(char *memory, int pages)
{
	struct timespec begun, ended;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (int time = 0; time < TIMES; time++) {
		pid_t child = fork();
		if (child == 0) {
			for (int page = 0; page < pages; page++)
				memory[(size_t)page * PAGE] = 2;
			_exit(0);
		}
		if (child < 0 || waitpid(child, NULL, 0) < 0)
			exit(1);
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	return ((ended.tv_sec - begun.tv_sec) * 1e3 + (ended.tv_nsec - begun.tv_nsec) / 1e6) / TIMES;
}

int main(int count, char **arguments)
{
	size_t size = (size_t)(count > 1 ? atoi(arguments[1]) : 48) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || madvise(memory, size, MADV_NOHUGEPAGE) != 0)
		return 1;
	memset(memory, 1, size);
	double bare = milliseconds(memory, 0);
	printf("%.3f %.3f\n", bare, (milliseconds(memory, PAGES) - bare) * 1e3 / PAGES);
	return 0;
}
