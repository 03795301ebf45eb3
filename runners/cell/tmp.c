/* What outlives processes in a cell's own namespaces: private tmp folders, System V IPC, POSIX message queues. */
#define _GNU_SOURCE
#include "cell.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { INODE = 1024, STAT_ANY = 15 }; /* what the kernel keeps for a file; SHM_STAT_ANY, which asks for no permission */

/* Remove all but what something of ours is mounted at. */
static bool remove_all(int folder, uint64_t device, const struct names *keep) {
  int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *entries = copy < 0 ? NULL : fdopendir(copy);
  if (!entries) return close_fd(&copy), false;
  bool done = true;
  for (struct dirent *one; (one = readdir(entries));) {
    struct stat facts;
    if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..") || names_have(keep, one->d_name)) continue;
    if (fstatat(folder, one->d_name, &facts, AT_SYMLINK_NOFOLLOW) || (device && facts.st_dev != device)) continue;
    folder_removed++;
    if (!unlinkat(folder, one->d_name, 0)) continue;
    int inner = folder_open(folder, one->d_name);
    done &= inner >= 0 && folder_empty(inner, NULL) && !unlinkat(folder, one->d_name, AT_REMOVEDIR);
    close_fd(&inner);
  }
  closedir(entries);
  return done;
}

static uint64_t inodes(const struct tmp *tmp) {
  struct statfs room;
  return fstatfs(tmp->fd, &room) ? 0 : room.f_files - room.f_ffree;
}

static bool is_empty(const struct tmp *tmp) { return inodes(tmp) == (tmp->keep.text ? tmp->kept : tmp->inodes); }

static bool folder_as_before(const struct tmp *tmp) {
  struct stat facts;
  if (fstat(tmp->fd, &facts)) return false;
  if ((facts.st_mode & 07777) != 01777 && fchmod(tmp->fd, 01777)) return false;
  if (!folder_bare(tmp->fd)) return false;
  return is_empty(tmp) || (remove_all(tmp->fd, tmp->device, &tmp->keep) && (tmp->keep.text || is_empty(tmp)));
}

static bool remove_shm(void) {
  struct shm_info all;
  struct shmid_ds one;
  int last = shmctl(0, SHM_INFO, (struct shmid_ds *)&all), id;
  if (last < 0) return false;
  for (int at = 0; all.used_ids && at <= last; at++)
    if ((id = shmctl(at, STAT_ANY, &one)) >= 0 || (id = shmctl(at, SHM_STAT, &one)) >= 0) shmctl(id, IPC_RMID, NULL);
  return !all.used_ids || (shmctl(0, SHM_INFO, (struct shmid_ds *)&all) >= 0 && !all.used_ids);
}

static bool remove_sem(void) {
  union {
    struct seminfo *all;
    struct semid_ds *one;
  } argument;
  struct seminfo all;
  struct semid_ds one;
  argument.all = &all;
  int last = semctl(0, 0, SEM_INFO, argument), id;
  if (last < 0) return false;
  bool any = all.semusz;
  argument.one = &one;
  for (int at = 0; any && at <= last; at++)
    if ((id = semctl(at, 0, SEM_STAT, argument)) >= 0) semctl(id, 0, IPC_RMID);
  argument.all = &all;
  return !any || (semctl(0, 0, SEM_INFO, argument) >= 0 && !all.semusz);
}

static bool remove_msg(void) {
  struct msginfo all;
  struct msqid_ds one;
  int last = msgctl(0, MSG_INFO, (struct msqid_ds *)&all), id;
  if (last < 0) return false;
  for (int at = 0; all.msgpool && at <= last; at++)
    if ((id = msgctl(at, MSG_STAT, &one)) >= 0) msgctl(id, IPC_RMID, NULL);
  return !all.msgpool || (msgctl(0, MSG_INFO, (struct msqid_ds *)&all) >= 0 && !all.msgpool);
}

bool tmp_empty(const struct sandbox *sandbox) {
  bool done = true;
  if (sandbox->got & PRIVATE_TMP)
    for (int at = 0; at < TMPS; at++) done &= sandbox->tmps[at].fd < 0 || folder_as_before(&sandbox->tmps[at]);
  if (sandbox->keeps_ipc) return done;
  done &= remove_shm();
  done &= remove_sem();
  done &= remove_msg();
  if (sandbox->queues >= 0) done &= remove_all(sandbox->queues, 0, NULL);
  return done;
}

/* System V IPC has no owner that could be asked: if there is any now, all of it stays. */
static bool any_ipc(void) {
  struct shm_info shm;
  struct msginfo msg;
  struct seminfo sem;
  union {
    struct seminfo *all;
  } argument = {&sem};
  return (shmctl(0, SHM_INFO, (struct shmid_ds *)&shm) >= 0 && shm.used_ids) ||
         (msgctl(0, MSG_INFO, (struct msqid_ds *)&msg) >= 0 && msg.msgpool) ||
         (semctl(0, 0, SEM_INFO, argument) >= 0 && sem.semusz);
}

void tmp_keep(struct sandbox *sandbox, bool keep) {
  for (int at = 0; at < TMPS; at++) {
    struct tmp *tmp = &sandbox->tmps[at];
    free(tmp->keep.text);
    tmp->keep = (struct names){0};
    if (!keep || tmp->fd < 0 || !(sandbox->got & PRIVATE_TMP)) continue;
    folder_names(tmp->fd, &tmp->keep);
    tmp->kept = inodes(tmp);
  }
  sandbox->keeps_ipc = keep && sandbox->got & NAMESPACES && any_ipc();
}

uint64_t tmp_weight(const struct sandbox *sandbox) {
  uint64_t total = 0;
  for (int at = 0; at < TMPS && sandbox->got & PRIVATE_TMP; at++) {
    struct statfs room;
    if (sandbox->tmps[at].fd < 0 || fstatfs(sandbox->tmps[at].fd, &room)) continue;
    total += (room.f_blocks - room.f_bfree) * (uint64_t)room.f_bsize + (room.f_files - room.f_ffree) * INODE;
  }
  struct shm_info shared;
  if (shmctl(0, SHM_INFO, (struct shmid_ds *)&shared) >= 0)
    total += (shared.shm_rss + shared.shm_swp) * (uint64_t)sysconf(_SC_PAGESIZE);
  return total;
}
