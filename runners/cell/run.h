/* What the four rooms of a run share, and nobody else: run.c, words.c, end.c, watch.c. */
#ifndef RUN_H
#define RUN_H

#include "cell.h"

static inline bool is_forked(const struct run *run) { return run->flags & FORKED; }

static inline uint64_t microseconds(const struct timeval *time) {
  return (uint64_t)time->tv_sec * 1000000 + (uint64_t)time->tv_usec;
}

/* run.c */

/* Aborts where the table of moves has no such move. */
void run_move(struct run *run, enum state state);
/* Close our ends of its pipes. */
void run_close(struct run *run);
/* It is over: nothing of it is kept. */
void run_forget(struct cell *cell, struct run *run);
/* Whether its folder is where it was made. */
bool run_is_at_its_name(const struct cell *cell, const struct run *run);
/* Empty its folder, and keep it for the next run: false when something is left in it. */
bool run_give_folder_back(struct cell *cell, struct run *run);
/* Remove what lies beside the folders of runs: false when something is left. */
bool run_empty_around(const struct cell *cell);
/* Tell the gateway, once it has room; `fd` may be the body's. */
void run_tell(struct cell *cell, const void *fixed, size_t size, const void *body, size_t length, int fd);

/* words.c */

void run_send_log(struct cell *cell, const struct head *head, const char *data, size_t size);
/* What there is of its logs now; of one that floods them, a part. */
void run_read_logs(struct cell *cell, struct run *run);
/* What is in the pipes now is all there will be: every writer is dead. */
void run_read_rest(struct cell *cell, struct run *run);

/* Have it end soon, if all of its result is there: what there is to do beside that is not the call's. */
void run_linger(struct run *run);
/* Nobody changes what is in a memory file any more: it is handed over. */
void run_seal(int fd);

/* end.c */

/* Its leader is dead, and nothing of it is to live on: it ends, or nearly. */
void run_end(struct cell *cell, struct run *run);

#endif
