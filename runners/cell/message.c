/* The wire: one message a packet, bodies of more than INLINE bytes as a memfd beside it. */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int message_read(int control, struct message *into) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int) * 4)];
  } rights;
  struct iovec part = {into->bytes, sizeof into->bytes};
  struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
  into->fd = -1;
  into->mapped = NULL;
  ssize_t size = recvmsg(control, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) return errno == ECONNRESET ? 0 : -1;
  int fds[4], count = 0;
  for (struct cmsghdr *one = CMSG_FIRSTHDR(&packet); one; one = CMSG_NXTHDR(&packet, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    size_t here = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t at = 0; at < here && count < 4; at++, count++) memcpy(&fds[count], CMSG_DATA(one) + at * sizeof(int), sizeof(int));
  }
  if (count) into->fd = fds[0];
  for (int at = 1; at < count; at++) close(fds[at]);
  into->size = (size_t)size;
  if (size == 0) {
    close_fd(&into->fd);
    return 0;
  }
  if (packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || into->size < sizeof into->head) {
    close_fd(&into->fd);
    return -1;
  }
  return 1;
}

const char *message_body(struct message *message, size_t fixed) {
  size_t length = message->head.body;
  if (message->size < fixed) return NULL;
  if (!(message->head.flags & BODY_IN_FD)) return message->size - fixed == length ? message->bytes + fixed : NULL;
  struct stat facts;
  if (message->size != fixed || message->fd < 0 || fstat(message->fd, &facts) || (uint64_t)facts.st_size < length) return NULL;
  if (!length) return message->bytes + fixed;
  void *where = mmap(NULL, length, PROT_READ, MAP_PRIVATE, message->fd, 0);
  if (where == MAP_FAILED) return NULL;
  message->mapped = where;
  message->mapped_size = length;
  return where;
}

bool message_words(const struct run_message *asked, const char *body, char **words, size_t room) {
  if (asked->words > asked->head.body || asked->argc == 0) return false;
  uint64_t count = (uint64_t)asked->argc + asked->envc;
  if (count > WORDS || count + 2 > room) return false;
  if (asked->words && body[asked->words - 1]) return false;
  const char *at = body, *end = body + asked->words;
  size_t place = 0;
  for (uint32_t word = 0; word < count; word++) {
    if (word == asked->argc) words[place++] = NULL;
    if (at >= end) return false;
    words[place++] = (char *)at;
    at += strlen(at) + 1;
  }
  if (asked->envc == 0) words[place++] = NULL;
  words[place] = NULL;
  return at == end;
}

void message_release(struct message *message) {
  if (message->mapped) munmap((void *)message->mapped, message->mapped_size);
  message->mapped = NULL;
  close_fd(&message->fd);
}

void message_hand_over(struct message *from, struct message *to) {
  to->fd = from->fd;
  to->mapped = from->mapped;
  to->mapped_size = from->mapped_size;
  from->fd = -1;
  from->mapped = NULL;
}

bool message_write(int control, const void *fixed, size_t size, const void *body, size_t length, int fd) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
  } rights = {0};
  struct iovec parts[] = {{(void *)fixed, size}, {(void *)body, length}};
  struct msghdr packet = {.msg_iov = parts, .msg_iovlen = length ? 2 : 1};
  if (fd >= 0) {
    packet.msg_control = &rights;
    packet.msg_controllen = sizeof rights.room;
    rights.header.cmsg_level = SOL_SOCKET;
    rights.header.cmsg_type = SCM_RIGHTS;
    rights.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&rights.header), &fd, sizeof fd);
  }
  for (;;) {
    if (sendmsg(control, &packet, MSG_NOSIGNAL) >= 0) return true;
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != ENOBUFS) return false;
    struct pollfd room = {.fd = control, .events = POLLOUT};
    poll(&room, 1, 1000);
    if (room.revents & (POLLHUP | POLLERR)) return false;
  }
}
