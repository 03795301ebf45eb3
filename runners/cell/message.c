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

static void take_descriptors(struct msghdr *packet, struct message *into) {
  for (struct cmsghdr *one = CMSG_FIRSTHDR(packet); one; one = CMSG_NXTHDR(packet, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t at = 0; at < count; at++) {
      int fd;
      memcpy(&fd, CMSG_DATA(one) + at * sizeof fd, sizeof fd);
      if (into->nfds < DESCRIPTORS_SENT)
        into->fds[into->nfds++] = fd;
      else
        close(fd);
    }
  }
}

int message_read(int socket, struct message *into) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int) * DESCRIPTORS_SENT)];
  } rights;
  struct iovec part = {into->bytes, sizeof into->bytes};
  struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
  into->nfds = 0;
  into->mapped = NULL;
  ssize_t size;
  do size = recvmsg(socket, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (size < 0 && errno == ECONNRESET); /* once, ahead of its last words: it has not read ours */
  if (size < 0) return -1;
  take_descriptors(&packet, into);
  into->size = (size_t)size;
  if (size == 0) {
    message_release(into);
    return 0;
  }
  if (packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || into->size < sizeof into->head) {
    message_release(into);
    return -1;
  }
  return 1;
}

const char *message_body(struct message *message, size_t fixed) {
  size_t length = message->head.body;
  if (message->size < fixed) return NULL;
  if (!(message->head.flags & BODY_IN_FD)) return message->size - fixed == length ? message->bytes + fixed : NULL;
  struct stat facts;
  if (message->size != fixed || !message->nfds || fstat(message->fds[0], &facts)) return NULL;
  if ((uint64_t)facts.st_size < length) return NULL;
  if (!length) return message->bytes + fixed;
  void *where = mmap(NULL, length, PROT_READ, MAP_PRIVATE, message->fds[0], 0);
  if (where == MAP_FAILED) return NULL;
  message->mapped = where;
  message->mapped_size = length;
  return where;
}

bool message_words(const struct run_message *asked, const char *body, char **words, size_t room) {
  if (asked->words > asked->head.body || asked->argc == 0) return false;
  if (asked->argc > WORDS || asked->envc > WORDS || (size_t)asked->argc + asked->envc + 2 > room) return false;
  if (asked->words && body[asked->words - 1]) return false;
  const char *at = body, *end = body + asked->words;
  uint32_t count = asked->argc + asked->envc, place = 0;
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
  for (int at = 0; at < message->nfds; at++) close_fd(&message->fds[at]);
  message->nfds = 0;
}

void message_hand_over(struct message *from, struct message *to) {
  to->mapped = from->mapped;
  to->mapped_size = from->mapped_size;
  to->nfds = 0;
  from->mapped = NULL;
}

int message_send(int socket, const void *fixed, size_t size, const void *body, size_t length, const int *fds, int nfds) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int) * DESCRIPTORS_SENT)];
  } rights = {0};
  struct iovec parts[] = {{(void *)fixed, size}, {(void *)body, length}};
  struct msghdr packet = {.msg_iov = parts, .msg_iovlen = length ? 2 : 1};
  if (nfds > 0) {
    packet.msg_control = &rights;
    packet.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
    rights.header.cmsg_level = SOL_SOCKET;
    rights.header.cmsg_type = SCM_RIGHTS;
    rights.header.cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
    memcpy(CMSG_DATA(&rights.header), fds, sizeof(int) * (size_t)nfds);
  }
  while (sendmsg(socket, &packet, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno == EAGAIN || errno == ENOBUFS) return 0;
    if (errno != EINTR) return -1;
  }
  return 1;
}

bool message_write(int socket, const void *fixed, size_t size, const void *body, size_t length, int fd) {
  for (;;) {
    int sent = message_send(socket, fixed, size, body, length, &fd, fd >= 0);
    if (sent) return sent > 0;
    struct pollfd room = {.fd = socket, .events = POLLOUT};
    poll(&room, 1, 1000);
    if (room.revents & (POLLHUP | POLLERR)) return false;
  }
}
