/* Input and output of a run. Every descriptor is non-blocking and closed on exec. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char chunk[INLINE];

void close_fd(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

void input_close(struct input *input) {
  close_fd(&input->fd);
  input->left = 0;
}

void input_write(struct input *input) {
  while (input->left) {
    ssize_t written = write(input->fd, input->at, input->left);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) return;
    if (written < 0) break; /* not reading the request is no error */
    input->at += written;
    input->left -= (size_t)written;
  }
  input_close(input);
}

static bool keep(struct output *output, const char *data, size_t size) {
  if (output->rest < 0 && output->size + size <= sizeof output->first) {
    memcpy(output->first + output->size, data, size);
    return true;
  }
  if (output->rest < 0) {
    output->rest = memfd_create("result", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (output->rest < 0) return false;
    if (write(output->rest, output->first, output->size) != (ssize_t)output->size) return false;
  }
  return write(output->rest, data, size) == (ssize_t)size;
}

bool output_read(struct output *output) {
  ssize_t size = read(output->fd, chunk, sizeof chunk);
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) {
    close_fd(&output->fd);
    return true;
  }
  if (output->bound && output->size + (uint64_t)size > output->bound) return false;
  if (!keep(output, chunk, (size_t)size)) return false;
  output->size += (uint64_t)size;
  output->last = chunk[size - 1];
  return true;
}
