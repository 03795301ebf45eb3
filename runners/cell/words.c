/* What a run says: its log, in batches, and its result. */
#define _GNU_SOURCE
#include "run.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void run_send_log(struct cell *cell, const struct head *head, const char *data, size_t size) {
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
  run_send_log(cell, &head, chunk, told);
}

void run_seal(int fd) { fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL); }

static void tell_result(struct cell *cell, const struct run *run, bool nothing) {
  struct head head = {.kind = RESULT, .run = run->id, .body = nothing ? 0 : (uint32_t)run->output.size};
  if (!nothing && run->output.rest >= 0) {
    run_seal(run->output.rest); /* it is closed: nothing follows */
    head.flags = BODY_IN_FD;
    run_tell(cell, &head, sizeof head, NULL, 0, run->output.rest);
  } else {
    run_tell(cell, &head, sizeof head, run->output.first, head.body, -1);
  }
}

void run_linger(struct run *run) {
  bool ended = run->output.fd < 0 && !(run->flags & (CHANNEL | HOST)); /* whose results are not ours to read */
  if (ended && run->state == RUNNING && !(run->flags & TELL_RESULT)) run->linger_at = now_ms() + run->linger_ms;
}

void run_read_output(struct cell *cell, struct run *run) {
  uint64_t before = run->output.size;
  if (!output_read(&run->output)) {
    close_fd(&run->output.fd);
    run_kill(run, OUTPUT);
    return;
  }
  bool more = run->output.size > before;
  if (run->flags & RESULT_IN_LINE && more && run->output.last == '\n') close_fd(&run->output.fd);
  bool closed = run->output.fd < 0;
  if (closed && run->why == BY_ITSELF) {
    run->whole = true;
    run_linger(run);
  }
  if (run->state == WAITING && more && !run->touched) {
    run->touched = true;
    tell_result(cell, run, true);
  }
  if (!(run->flags & TELL_RESULT) || run->goes_on || run->why != BY_ITSELF) return;
  bool ends = run->output.rest < 0 && more && run->output.last == '\n';
  if (!closed && (!ends || run->results_told >= RESULTS_TOLD)) return;
  run->results_told++;
  tell_result(cell, run, false);
}

/* What there is of its logs now; of one that floods them, a part. */
void run_read_logs(struct cell *cell, struct run *run) {
  for (int at = 0; at < 2; at++)
    for (int count = 0; count < 64 && run->logs[at].fd >= 0; count++) {
      uint64_t before = run->log_bytes;
      run_read_log(cell, run, &run->logs[at]);
      if (run->logs[at].fd >= 0 && run->log_bytes == before) break;
    }
}

/* What is in the pipes now is all there will be: every writer is dead. */
void run_read_rest(struct cell *cell, struct run *run) {
  while (run->output.fd >= 0 && run->why != OUTPUT) {
    uint64_t before = run->output.size;
    run_read_output(cell, run);
    if (run->output.fd >= 0 && run->output.size == before) break;
  }
  run_read_logs(cell, run);
}
