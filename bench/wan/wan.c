/* A small WAN in user space: one TUN device in each host's network namespace, and this process between them.
 *
 *     wan NAMESPACE=ADDRESS NAMESPACE=ADDRESS ...
 *
 * Each host has an access link: a rate up and a rate down, a delay, and loss. A packet waits for its turn on
 * the sender's uplink, travels for both hosts' delays, waits for its turn on the receiver's downlink, and
 * arrives. Queues drop what would wait too long, as routers do. Commands come on standard input, one a line,
 * each answered by a line:
 *
 *     link HOST UP DOWN DELAY LOSS QUEUE   bits/s, bits/s (0: no limit), s, share 0..1, s
 *     cut FROM TO 0|1                      1: packets of host FROM don't reach host TO (hosts by number)
 *     stats                                one JSON object, counted since the last time
 *
 * The end of standard input ends it, and with it the devices, so nothing outlives whoever started it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { HOSTS = 64, MTU = 1500, BURST = 64, FRAME = 38, LINE = 256 };
/* FRAME: bytes of Ethernet header, checksum, preamble and gap that a packet costs on a real wire. */

struct packet {
    int64_t due;  /* ns: arrival at the downlink, later at the host */
    uint64_t order; /* of two due at once the earlier read goes first */
    struct packet *next;
    int to, size;
    unsigned char bytes[MTU];
};

struct host {
    int device;
    uint32_t address; /* network order */
    double up, down, loss;
    int64_t delay, queue;       /* ns */
    int64_t up_free, down_free; /* ns: when the link has sent what it has */
    struct packet *first, *last; /* on the downlink */
    char cut[HOSTS];             /* [to] */
    uint64_t sent, received, overflowed, lost;
};

static struct host host[HOSTS];
static int hosts;
static struct packet **heap; /* under way between two links, by due */
static size_t heap_size, heap_room;
static struct packet *spare;
static uint64_t order, late_max;

static void die(const char *what) {
    fprintf(stderr, "wan: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double chance(void) { /* xorshift64*: repeatable, uniform in [0, 1) */
    static uint64_t s = 0x9E3779B97F4A7C15ULL;
    s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
    return (double)((s * 0x2545F4914F6CDD1DULL) >> 11) / 9007199254740992.0;
}

static struct packet *fresh(void) {
    struct packet *p = spare;
    if (p) {
        spare = p->next;
        return p;
    }
    if (!(p = malloc(sizeof *p))) die("memory");
    return p;
}

static void release(struct packet *p) { p->next = spare, spare = p; }

static int before(const struct packet *a, const struct packet *b) {
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void heap_push(struct packet *p) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        if (!(heap = realloc(heap, heap_room * sizeof *heap))) die("memory");
    }
    size_t i = heap_size++;
    for (; i && before(p, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = p;
}

static struct packet *heap_pop(void) {
    struct packet *top = heap[0], *last = heap[--heap_size];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child], i = child;
    }
    heap[i] = last;
    return top;
}

/* When a packet has left a link, or -1 if its queue is full. */
static int64_t transmit(int64_t *free_at, double rate, int64_t queue, int64_t at, int size) {
    if (rate <= 0) return at;
    int64_t start = *free_at > at ? *free_at : at;
    if (start - at > queue) return -1;
    return *free_at = start + (int64_t)((size + FRAME) * 8e9 / rate);
}

static int find(uint32_t address) {
    for (int i = 0; i < hosts; i++)
        if (host[i].address == address) return i;
    return -1;
}

static int collect(int from, int64_t now) {
    struct host *h = &host[from];
    int got = 0;
    for (; got < BURST; got++) {
        struct packet *p = fresh();
        ssize_t size = read(h->device, p->bytes, sizeof p->bytes);
        if (size <= 0) {
            release(p);
            break;
        }
        uint32_t address = 0;
        if (size >= 20 && p->bytes[0] >> 4 == 4) memcpy(&address, p->bytes + 16, 4);
        p->to = find(address), p->size = (int)size, p->order = order++;
        int64_t gone = p->to < 0 ? -1 : transmit(&h->up_free, h->up, h->queue, now, p->size);
        if (gone < 0) {
            h->overflowed += p->to >= 0;
            release(p);
        } else if (h->cut[p->to] || chance() < h->loss || chance() < host[p->to].loss) {
            h->lost++;
            release(p);
        } else {
            h->sent += p->size;
            p->due = gone + h->delay + host[p->to].delay;
            heap_push(p);
        }
    }
    return got;
}

static void arrive(int64_t now) {
    while (heap_size && heap[0]->due <= now) {
        struct packet *p = heap_pop();
        struct host *h = &host[p->to];
        p->due = transmit(&h->down_free, h->down, h->queue, p->due, p->size);
        if (p->due < 0) {
            h->overflowed++;
            release(p);
            continue;
        }
        p->next = NULL;
        *(h->first ? &h->last->next : &h->first) = p;
        h->last = p;
    }
}

static void deliver(struct host *h, int64_t now) {
    while (h->first && h->first->due <= now) {
        struct packet *p = h->first;
        h->first = p->next;
        if (now - p->due > (int64_t)late_max) late_max = now - p->due;
        if (write(h->device, p->bytes, p->size) == p->size)
            h->received += p->size;
        else
            h->overflowed++;
        release(p);
    }
}

static void stats(void) {
    printf("{\"late_ms\": %.3f, \"hosts\": [", late_max / 1e6);
    for (int i = 0; i < hosts; i++) {
        struct host *h = &host[i];
        printf("%s{\"sent\": %lu, \"received\": %lu, \"overflowed\": %lu, \"lost\": %lu}", i ? ", " : "",
               (unsigned long)h->sent, (unsigned long)h->received, (unsigned long)h->overflowed,
               (unsigned long)h->lost);
        h->sent = h->received = h->overflowed = h->lost = 0;
    }
    late_max = 0;
    printf("]}\n");
}

static void command(const char *line) {
    int i, j, on;
    double up, down, delay, loss, queue;
    if (sscanf(line, "link %d %lf %lf %lf %lf %lf", &i, &up, &down, &delay, &loss, &queue) == 6 && i >= 0 &&
        i < hosts) {
        struct host *h = &host[i];
        h->up = up, h->down = down, h->loss = loss;
        h->delay = (int64_t)(delay * 1e9), h->queue = (int64_t)(queue * 1e9);
        printf("ok\n");
    } else if (sscanf(line, "cut %d %d %d", &i, &j, &on) == 3 && i >= 0 && i < hosts && j >= 0 && j < hosts) {
        host[i].cut[j] = on != 0;
        printf("ok\n");
    } else if (!strcmp(line, "stats")) {
        stats();
    } else {
        printf("what is \"%s\"?\n", line);
    }
    fflush(stdout);
}

/* Reads what is there; whether standard input goes on. */
static int commands(void) {
    static char line[LINE];
    static size_t used;
    ssize_t got = read(STDIN_FILENO, line + used, sizeof line - 1 - used);
    if (got <= 0) return 0;
    used += (size_t)got;
    line[used] = 0;
    for (char *end; (end = strchr(line, '\n'));) {
        *end = 0;
        command(line);
        used -= (size_t)(end + 1 - line);
        memmove(line, end + 1, used + 1);
    }
    return used < sizeof line - 1;
}

static void attach(const char *argument) {
    struct host *h = &host[hosts++];
    char path[LINE], name[128];
    const char *equals = strchr(argument, '=');
    if (!equals || equals - argument > 100) errno = EINVAL, die(argument);
    snprintf(name, sizeof name, "%.*s", (int)(equals - argument), argument);
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET)) die(path);
    close(space);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "wan0");
    h->device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (h->device < 0 || ioctl(h->device, TUNSETIFF, &request)) die("/dev/net/tun");
    if (inet_pton(AF_INET, equals + 1, &h->address) != 1) errno = EINVAL, die(equals + 1);
    h->queue = 100000000;
}

/* How long until something is due. */
static struct timespec pause_from(int64_t now) {
    int64_t next = now + 1000000000LL;
    if (heap_size && heap[0]->due < next) next = heap[0]->due;
    for (int i = 0; i < hosts; i++)
        if (host[i].first && host[i].first->due < next) next = host[i].first->due;
    /* Not shorter than 100 us: that many packets later matters to nobody, and saves most wake-ups. */
    int64_t wait = next - now < 100000 ? 100000 : next - now;
    return (struct timespec){wait / 1000000000LL, wait % 1000000000LL};
}

int main(int count, char **arguments) {
    if (count < 3 || count > HOSTS + 1) errno = EINVAL, die("two to 64 hosts");
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for whoever started us, and closes our input */
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    for (int i = 1; i < count; i++) attach(arguments[i]);
    if (home < 0 || setns(home, CLONE_NEWNET)) die("own namespace"); /* we are no process of a host's */
    close(home);
    prctl(PR_SET_TIMERSLACK, 1000);
    printf("ready\n");
    fflush(stdout);
    struct pollfd polled[HOSTS + 1];
    for (int i = 0; i < hosts; i++) polled[i] = (struct pollfd){host[i].device, POLLIN, 0};
    polled[hosts] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
    for (;;) {
        int64_t now = now_ns();
        int got = 0;
        for (int i = 0; i < hosts; i++) got += collect(i, now);
        arrive(now);
        for (int i = 0; i < hosts; i++) deliver(&host[i], now);
        struct timespec wait = got ? (struct timespec){0, 0} : pause_from(now_ns());
        polled[hosts].revents = 0;
        if (ppoll(polled, hosts + 1, &wait, NULL) < 0 && errno != EINTR) die("poll");
        if (polled[hosts].revents && !commands()) return 0;
    }
}
