/* Feeds the cell's reader of messages what no gateway would say, and looks whether it stays within what it was given.

   fuzz SEED FIRST INPUTS SECONDS: inputs from number FIRST on, until so many were given (0: any number) or so much time
   has passed (0: any time). An input depends on the seed and its number alone: one that fails is made again by these.
   With -DLIBFUZZER, clang's engine has the lead: it sees which inputs lead to something new, and goes on from those. */
#define _GNU_SOURCE
#include "../../runners/cell/cell.h"

#include <errno.h>
#include <fcntl.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  BEFORE = 5,            /* bytes of an input that say how the rest is sent: see `send_input` */
  LONGEST = 256 << 10,   /* bytes of an input: more than a message has */
  RIGHTS = 6,            /* descriptors with one message: more than the reader has room for */
  TAKEN = 4,             /* so many it has room for */
};

struct sent {
  const uint8_t *data;
  size_t size, rights;
};

#define MUST(what) \
  do { \
    if (!(what)) { \
      fprintf(stderr, "fuzz: not so: %s (line %d)\n", #what, __LINE__); \
      abort(); \
    } \
  } while (0)

static struct message message, keeper;
static char *words[WORDS + 2];
static int ours, theirs;
static unsigned long bodies, cut; /* that were taken for messages, and whose words for words */
static volatile unsigned char sink;

static size_t smaller(size_t one, size_t other) { return one < other ? one : other; }

/* --- one input */

static int some_fd(unsigned kind, const uint8_t *rest, size_t size) {
  int ends[2], fd;
  switch (kind) {
    case 0: return open("/dev/null", O_RDONLY | O_CLOEXEC);
    case 1: return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    case 2:
      MUST(!pipe2(ends, O_CLOEXEC));
      close(ends[1]);
      return ends[0];
    default:
      MUST((fd = memfd_create("body", MFD_CLOEXEC)) >= 0);
      MUST(write(fd, rest, size) == (ssize_t)size);
      return fd;
  }
}

/* The first byte: how many descriptors come along. The second: what they are. Then three bytes: how much is in the
   message; the rest is in the memfd. */
static struct sent send_input(const uint8_t *data, size_t size) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int) * RIGHTS)];
  } rights = {0};
  size_t count = data[0] % (RIGHTS + 1), told = data[2] | (size_t)data[3] << 8 | (size_t)data[4] << 16;
  size_t inside = smaller(told, size - BEFORE);
  const uint8_t *rest = data + BEFORE + inside;
  struct iovec part = {(void *)(data + BEFORE), inside};
  struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
  int fds[RIGHTS];
  for (size_t at = 0; at < count; at++) {
    unsigned kind = at ? data[1] >> 4 & 3 : data[1] & 3;
    fds[at] = some_fd(kind, rest, size - BEFORE - inside);
  }
  if (count > 1) {
    packet.msg_control = &rights;
    packet.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    rights.header.cmsg_level = SOL_SOCKET;
    rights.header.cmsg_type = SCM_RIGHTS;
    rights.header.cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(&rights.header), fds, sizeof(int) * count);
    MUST(sendmsg(ours, &packet, MSG_NOSIGNAL) == (ssize_t)inside);
  } else { /* as the cell itself does */
    size_t first = smaller(inside, sizeof(struct head));
    MUST(message_write(ours, data + BEFORE, first, data + BEFORE + first, inside - first, count ? fds[0] : -1));
  }
  for (size_t at = 0; at < count; at++) close(fds[at]);
  return (struct sent){data + BEFORE, inside, count};
}

/* Every byte is looked at: those that do not belong to it are poisoned. */
static void look_at(const char *body, size_t size) {
  for (size_t at = 0; at < size; at++) sink ^= (unsigned char)body[at];
}

static void look_at_words(const struct run_message *asked, const char *body) {
  if (!message_words(asked, body, words, sizeof words / sizeof *words)) return;
  const char *at = body;
  size_t count = (size_t)asked->argc + asked->envc;
  MUST(asked->argc && count <= WORDS);
  for (size_t word = 0; word < count; word++) {
    const char *found = words[word + (word >= asked->argc)];
    MUST(found == at);
    at += strlen(found) + 1;
  }
  MUST(at == body + asked->words && asked->words <= asked->head.body);
  cut++;
  MUST(!words[asked->argc] && !words[count + 1]);
}

static void handle(void) {
  size_t fixed = message.head.kind == RUN ? sizeof(struct run_message) : sizeof(struct feed_message);
  const char *body = message_body(&message, fixed);
  char *end = message.mapped ? (char *)message.mapped + message.mapped_size : NULL;
  size_t beyond = end ? -(uintptr_t)end % (uintptr_t)sysconf(_SC_PAGESIZE) : 0;
  ASAN_POISON_MEMORY_REGION(end, beyond);
  if (body) {
    MUST(message.size == fixed + (message.head.flags & BODY_IN_FD ? 0 : message.head.body));
    bodies++;
    look_at(body, message.head.body);
    if (message.head.kind == RUN) look_at_words(&message.run, body);
  }
  ASAN_UNPOISON_MEMORY_REGION(end, beyond);
  unsigned char page;
  char *mapped = (char *)message.mapped;
  if (message.head.run & 1) { /* as an input that is kept until it was read */
    message_hand_over(&message, &keeper);
    MUST(!message.mapped && !keeper.nfds);
    message_release(&keeper);
    message_release(&message);
  } else {
    message_release(&message);
  }
  MUST(!mapped || (mincore(mapped, 1, &page) < 0 && errno == ENOMEM));
}

static uint64_t descriptors(void) {
  uint64_t open = 0;
  for (int at = 0; at < 64; at++) open |= (uint64_t)(fcntl(at, F_GETFD) >= 0) << at;
  return open;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!ours) {
    int ends[2];
    MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    ours = ends[0];
    theirs = ends[1];
    int room = LONGEST * 2;
    MUST(!setsockopt(ours, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
    keeper.nfds = 0;
  }
  if (size < BEFORE) return 0;
  uint64_t before = descriptors();
  struct sent sent = send_input(data, smaller(size, LONGEST));
  int read = message_read(theirs, &message);
  MUST(read == 1 || !message.nfds);
  if (read == 1) {
    MUST(message.size >= sizeof message.head && message.size == sent.size && sent.rights <= TAKEN);
    MUST(!memcmp(message.bytes, sent.data, sent.size));
    ASAN_POISON_MEMORY_REGION(message.bytes + message.size, MESSAGE - message.size); /* of those that came before */
    handle();
    ASAN_UNPOISON_MEMORY_REGION(message.bytes, MESSAGE);
  }
  MUST(message_read(theirs, &message) == -1); /* no message is two */
  MUST(descriptors() == before);
  return 0;
}

/* --- messages as a gateway makes them, with something wrong */

static uint64_t state;

static uint64_t any(uint64_t below) { /* xorshift64* */
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * 0x2545F4914F6CDD1DULL >> 16) % below;
}

/* Numbers at which something changes. */
static uint32_t odd_number(size_t size) {
  const uint32_t odd[] = {0,       1,          2,          WORDS - 1,  WORDS,     WORDS + 1, INLINE,
                          MESSAGE, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
  uint64_t one = any(sizeof odd / sizeof *odd + 3);
  return one < 3 ? (uint32_t)(size + one - 1) : odd[one - 3];
}

static size_t some_words(char *into, uint32_t count) {
  char *at = into;
  for (uint32_t word = 0; word < count; word++) {
    size_t length = any(8) ? any(12) : any(200);
    memset(at, 'a' + (int)any(26), length);
    at[length] = 0;
    at += length + 1;
  }
  return (size_t)(at - into);
}

/* A message that is right; the size of all of it. */
static size_t right_input(uint8_t *data) {
  static char body[LONGEST];
  struct run_message run = {.head = {.run = (uint32_t)any(4), .flags = (uint32_t)any(4)}};
  run.head.kind = any(4) ? RUN : 1 + (uint32_t)any(9);
  size_t fixed = sizeof run, length = 0;
  if (run.head.kind == RUN) {
    bool many = !any(20);
    run.argc = 1 + (uint32_t)any(many ? WORDS : 6);
    run.envc = many ? WORDS + (uint32_t)any(6) - run.argc : (uint32_t)any(6); /* a few too many at times */
    length = run.words = (uint32_t)some_words(body, run.argc + run.envc > 400 ? 400 : run.argc + run.envc);
    if (run.argc + run.envc > 400) { /* as many empty ones */
      memset(body + length, 0, run.argc + run.envc - 400);
      length = run.words += run.argc + run.envc - 400;
    }
  } else {
    fixed = sizeof(struct feed_message);
  }
  size_t input = any(3) ? any(64) : any(INLINE);
  memset(body + length, (int)any(256), input);
  length += input;
  run.head.body = (uint32_t)length;
  bool beside = !any(3);
  if (beside) run.head.flags |= BODY_IN_FD;
  size_t inside = beside ? fixed : fixed + length;
  data[0] = beside || !any(8);
  data[1] = 3;
  data[2] = (uint8_t)inside, data[3] = (uint8_t)(inside >> 8), data[4] = (uint8_t)(inside >> 16);
  memcpy(data + BEFORE, &run, fixed);
  memcpy(data + BEFORE + fixed, body, length);
  return BEFORE + fixed + length;
}

static size_t make_wrong(uint8_t *data, size_t size) {
  switch (any(8)) {
    case 0: data[any(smaller(size, any(2) ? size : 80))] ^= (uint8_t)(1 << any(8)); break;
    case 1: data[any(size)] = (uint8_t)any(256); break;
    case 2: data[0] = (uint8_t)any(256); break; /* how many descriptors */
    case 3: data[1] = (uint8_t)any(256); break; /* of what kind */
    case 4: { /* a number of the fixed part */
      uint32_t value = odd_number(size - BEFORE);
      size_t at = BEFORE + any(10) * sizeof value;
      if (at + sizeof value <= size) memcpy(data + at, &value, sizeof value);
      break;
    }
    case 5: { /* as many words, but others of them are arguments */
      struct run_message run;
      if (size < BEFORE + sizeof run) break;
      memcpy(&run, data + BEFORE, sizeof run);
      uint32_t argc = odd_number(run.argc);
      run.envc += run.argc - argc;
      run.argc = argc;
      memcpy(data + BEFORE, &run, sizeof run);
      break;
    }
    case 6: return BEFORE + any(size - BEFORE + 1); /* cut off */
    case 7: { /* too much */
      size_t more = any(any(8) ? 64 : LONGEST);
      more = smaller(more, LONGEST - size);
      memset(data + size, (int)any(256), more);
      if (any(2)) data[4] = 255; /* in the message itself */
      return size + more;
    }
  }
  return size;
}

static void begin_at(uint64_t one, uint64_t other) {
  state = (one + 1) * 0x9E3779B97F4A7C15ULL ^ (other + 1) * 0xD1B54A32D192ED03ULL;
  for (int warm = 0; warm < 4; warm++) any(2);
}

#ifdef LIBFUZZER

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
  begin_at(seed, 0);
  if (room < LONGEST || !any(3)) return LLVMFuzzerMutate(data, size, room);
  return size <= BEFORE || !any(8) ? right_input(data) : make_wrong(data, size);
}

#else

static unsigned long seed, number;

static void tell(void) { fprintf(stderr, "fuzz: again by: fuzz %lu %lu 1 0\n", seed, number); }

static void on_abort(int ignored) {
  (void)ignored;
  tell();
}

int main(int argc, char **argv) {
  static uint8_t data[LONGEST];
  if (argc != 5) return 2;
  seed = strtoul(argv[1], NULL, 10);
  unsigned long first = strtoul(argv[2], NULL, 10), inputs = strtoul(argv[3], NULL, 10);
  time_t until = strtol(argv[4], NULL, 10);
  if (until) until += time(NULL);
  __sanitizer_set_death_callback(tell);
  signal(SIGABRT, on_abort);
  for (number = first; (!inputs || number - first < inputs) && (!until || time(NULL) < until); number++) {
    begin_at(seed, number);
    size_t size = right_input(data);
    for (uint64_t wrong = any(4); wrong; wrong--) size = make_wrong(data, size);
    LLVMFuzzerTestOneInput(data, size);
  }
  printf("%lu inputs, %lu bodies, %lu with words\n", number - first, bodies, cut);
  return 0;
}

#endif
