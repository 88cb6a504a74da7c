/*
 * strictsink: an MTA that accepts every message and stores none.
 *
 * Without --pipelining it is a server as in RFC 2920 section 1: after each command or message that it
 * reads, it DISCARDS all other octets in its input buffer, and counts a violation; a client that
 * pipelines loses commands. With --drain it also empties its socket right before each reply, and with
 * --reply-delay-us it delays each reply, so that octets in a later segment, but before the reply, are
 * violations too.
 *
 * With --pipelining it offers PIPELINING and processes all commands.
 *
 * RCPT TO:<bad...> is refused with 550. Replies to MAIL and RCPT repeat the path, so that a client can
 * check their order. On SIGTERM and SIGINT it prints its counters as one JSON object.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common.h"

#define EVENTS 512
#define LINE_MOST 2048
#define PATH_MOST 200
#define HASH_START 1469598103934665603ull       /* FNV-1a */
#define HASH_PRIME 1099511628211ull

struct connection {
	int fd;
	int in_content;
	int closing;
	int violated;
	int recipients;
	unsigned line_bytes;
	unsigned matched;       /* of CRLF . CRLF, at the end of what has come */
	uint64_t hash;
	uint64_t due;           /* when the held reply goes out */
	struct connection *next;
	char reply[1200];
	unsigned reply_bytes;
	char line[LINE_MOST];
};

static struct {
	long connections, open_most, commands, unknown, recipients, refused, messages, quits;
	long violations, violated_sessions, lost;
	long contents;          /* how often content differed from the one before */
	unsigned long long content_bytes, discarded_bytes;
} count;

static struct {
	int pipelining, drain, multiline, hash;
	long reply_delay_us;
} options;

static long open_now;
static int epoll_fd, timer_fd;
static struct connection *held, *held_last;
static uint64_t last_hash;

static void report(void)
{
	printf("{\"connections\": %ld, \"open_most\": %ld, \"commands\": %ld, \"unknown\": %ld, \"recipients\": %ld, "
	       "\"refused\": %ld, \"messages\": %ld, \"quits\": %ld, ",
	       count.connections, count.open_most, count.commands, count.unknown, count.recipients, count.refused,
	       count.messages, count.quits);
	printf("\"violations\": %ld, \"violated_sessions\": %ld, \"lost\": %ld, \"contents\": %ld, "
	       "\"content_bytes\": %llu, \"discarded_bytes\": %llu}\n",
	       count.violations, count.violated_sessions, count.lost, count.contents, count.content_bytes,
	       count.discarded_bytes);
	fflush(stdout);
}

static void drop(struct connection *c)
{
	if (!c->closing)
		count.lost++;
	close(c->fd);
	open_now--;
	free(c);
}

static void note_violation(struct connection *c, size_t bytes)
{
	count.violations++;
	count.discarded_bytes += bytes;
	count.violated_sessions += !c->violated;
	c->violated = 1;
}

static void drain(struct connection *c)
{
	char early[65536];
	ssize_t bytes;

	while ((bytes = recv(c->fd, early, sizeof(early), MSG_DONTWAIT)) > 0)
		note_violation(c, bytes);
}

/* Replies. Each function returns -1 when the connection is gone. */

static int send_reply(struct connection *c)
{
	if (options.drain && !options.pipelining)
		drain(c);
	if (c->reply_bytes && send(c->fd, c->reply, c->reply_bytes, MSG_NOSIGNAL) != (ssize_t)c->reply_bytes) {
		drop(c);
		return -1;
	}
	c->reply_bytes = 0;
	if (c->closing) {
		drop(c);
		return -1;
	}
	return 0;
}

static void set_timer(void)
{
	struct itimerspec time = { 0 };

	if (held) {
		time.it_value.tv_sec = held->due / NS_PER_S;
		time.it_value.tv_nsec = held->due % NS_PER_S;
	}
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &time, NULL);
}

static void watch(struct connection *c, unsigned events)
{
	struct epoll_event event = { .events = events, .data.ptr = c };

	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void hold_reply(struct connection *c)
{
	watch(c, 0);    /* what comes until then is early */
	c->due = now_ns() + (uint64_t)options.reply_delay_us * 1000;
	c->next = NULL;
	if (held)
		held_last->next = c;
	else
		held = c;
	held_last = c;
	if (held == c)
		set_timer();
}

static void send_held(void)
{
	uint64_t now = now_ns();

	while (held && held->due <= now) {
		struct connection *c = held;

		held = c->next;
		if (send_reply(c) == 0)
			watch(c, EPOLLIN);
	}
	set_timer();
}

static void flush_reply(struct connection *c)
{
	if (options.reply_delay_us)
		hold_reply(c);
	else
		send_reply(c);
}

static int add_reply(struct connection *c, const char *text, size_t bytes)
{
	if (c->reply_bytes + bytes > sizeof(c->reply) && send_reply(c) < 0)
		return -1;
	memcpy(c->reply + c->reply_bytes, text, bytes);
	c->reply_bytes += bytes;
	return 0;
}

#define REPLY(c, text) add_reply(c, text, sizeof(text) - 1)

static int reply_with_path(struct connection *c, const char *code, const char *line, size_t bytes)
{
	char text[512];
	const char *path = memchr(line, '<', bytes);
	const char *end = path ? memchr(path, '>', bytes - (path - line)) : NULL;
	int length = end ? (int)(end - path) + 1 : 0, number = 0;

	if (length > PATH_MOST)
		length = PATH_MOST;
	if (options.multiline)
		number = sprintf(text, "%.3s-%s first line\r\n", code, code + 4);
	number += sprintf(text + number, "%s %.*s %s\r\n", code, length, path ? path : "",
	                  *code == '5' ? "refused" : "ok");
	return add_reply(c, text, number);
}

static int reply_to_hello(struct connection *c)
{
	if (REPLY(c, "250-sink.example\r\n250-SIZE 209715200\r\n") < 0)
		return -1;
	if (options.pipelining && REPLY(c, "250-PIPELINING\r\n") < 0)
		return -1;
	return REPLY(c, "250 8BITMIME\r\n");
}

static int reply_to_recipient(struct connection *c, const char *line, size_t bytes)
{
	const char *path = memchr(line, '<', bytes);
	int refused = path && !strncasecmp(path + 1, "bad", 3);

	c->recipients += !refused;
	count.recipients += !refused;
	count.refused += refused;
	return reply_with_path(c, refused ? "550 5.1.1" : "250 2.1.5", line, bytes);
}

static int begin_content(struct connection *c)
{
	if (!c->recipients)
		return REPLY(c, "554 5.5.1 no valid recipients\r\n");
	c->in_content = 1;
	c->matched = 2;         /* the CRLF of the DATA line */
	c->hash = HASH_START;
	return REPLY(c, "354 go ahead\r\n");
}

static int reply_to_quit(struct connection *c)
{
	count.quits++;
	if (REPLY(c, "221 2.0.0 bye\r\n") < 0)
		return -1;
	c->closing = 1;
	return 0;
}

static int take_command(struct connection *c, const char *line, size_t bytes)
{
	char verb[5] = "";

	count.commands++;
	memcpy(verb, line, bytes < 4 ? bytes : 4);
	if (!strcasecmp(verb, "RCPT"))
		return reply_to_recipient(c, line, bytes);
	if (!strcasecmp(verb, "DATA"))
		return begin_content(c);
	if (!strcasecmp(verb, "EHLO"))
		return reply_to_hello(c);
	if (!strcasecmp(verb, "HELO"))
		return REPLY(c, "250 sink.example\r\n");
	if (!strcasecmp(verb, "NOOP"))
		return REPLY(c, "250 2.0.0 ok\r\n");
	if (!strcasecmp(verb, "QUIT"))
		return reply_to_quit(c);
	if (!strcasecmp(verb, "MAIL") || !strcasecmp(verb, "RSET"))
		c->recipients = 0;
	if (!strcasecmp(verb, "MAIL"))
		return reply_with_path(c, "250 2.1.0", line, bytes);
	if (!strcasecmp(verb, "RSET"))
		return REPLY(c, "250 2.0.0 reset\r\n");
	count.unknown++;
	return REPLY(c, "500 5.5.1 unknown command\r\n");
}

/* Where the message ends in these bytes: the place right after CRLF . CRLF, or 0. */
static size_t end_of_content(struct connection *c, const char *bytes, size_t number)
{
	static const char end[] = "\r\n.\r\n";
	const char *found;
	size_t i = 0, length;

	while (c->matched && i < number) {      /* what an earlier read has begun */
		if (bytes[i] == end[c->matched]) {
			i++;
			if (++c->matched == 5)
				return i;
		} else {
			c->matched = 0;
			if (bytes[i] == '\r') {
				c->matched = 1;
				i++;
			}
		}
	}
	if (i == number)
		return 0;
	found = memmem(bytes + i, number - i, end, 5);
	if (found)
		return found - bytes + 5;
	for (length = number - i < 4 ? number - i : 4; length; length--)
		if (!memcmp(bytes + number - length, end, length)) {
			c->matched = length;
			break;
		}
	return 0;
}

static void hash(struct connection *c, const char *bytes, size_t number)
{
	size_t i;

	for (i = 0; i < number; i++)
		c->hash = (c->hash ^ (unsigned char)bytes[i]) * HASH_PRIME;
}

/* Returns how many bytes belong to the message: all, if it has not ended. */
static size_t take_content(struct connection *c, const char *bytes, size_t number)
{
	size_t end = end_of_content(c, bytes, number), taken = end ? end : number;

	count.content_bytes += taken;
	if (options.hash)
		hash(c, bytes, taken);
	if (!end)
		return taken;
	c->in_content = 0;
	count.messages++;
	count.content_bytes -= 3;      /* the last line's end belongs to it, the dot does not */
	if (options.hash && c->hash != last_hash) {
		last_hash = c->hash;
		count.contents++;
	}
	return taken;
}

/* Returns how many bytes belong to the command line; 0: the connection is gone. */
static size_t take_line(struct connection *c, const char *bytes, size_t number)
{
	const char *newline = memchr(bytes, '\n', number);
	size_t taken = newline ? (size_t)(newline - bytes) + 1 : number;

	if (!newline || c->line_bytes) {
		if (c->line_bytes + taken > sizeof(c->line)) {
			drop(c);
			return 0;
		}
		memcpy(c->line + c->line_bytes, bytes, taken);
		c->line_bytes += taken;
		bytes = c->line;
	}
	if (!newline)
		return taken;
	number = c->line_bytes ? c->line_bytes : taken;
	c->line_bytes = 0;
	while (number && (bytes[number - 1] == '\n' || bytes[number - 1] == '\r'))
		number--;
	return take_command(c, bytes, number) < 0 ? 0 : taken;
}

static void take(struct connection *c, const char *bytes, size_t number)
{
	while (number && !c->closing) {
		size_t taken;

		if (c->in_content) {
			taken = take_content(c, bytes, number);
			if (!c->in_content && REPLY(c, "250 2.0.0 message accepted\r\n") < 0)
				return;
		} else {
			taken = take_line(c, bytes, number);
			if (!taken)
				return;
		}
		bytes += taken;
		number -= taken;
		if (c->reply_bytes && !options.pipelining) {
			if (number)
				note_violation(c, number);
			break;
		}
	}
	if (c->reply_bytes)
		flush_reply(c);
}

static void receive(struct connection *c)
{
	static char bytes[READ_BYTES];
	ssize_t number = recv(c->fd, bytes, sizeof(bytes), 0);

	if (number > 0)
		take(c, bytes, number);
	else if (number == 0 || errno != EAGAIN)
		drop(c);
}

static void accept_all(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct connection *c = allocate(sizeof(*c));
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };

		c->fd = fd;
		count.connections++;
		if (++open_now > count.open_most)
			count.open_most = open_now;
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
		REPLY(c, "220 sink.example ESMTP\r\n");
		flush_reply(c);
	}
}

static struct sockaddr_in read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "listen", 1, 0, 'l' }, { "pipelining", 0, 0, 'p' }, { "drain", 0, 0, 'd' },
		{ "reply-delay-us", 1, 0, 'D' }, { "multiline", 0, 0, 'm' }, { "hash", 0, 0, 'h' },
		{ 0, 0, 0, 0 }
	};
	struct sockaddr_in address = { 0 };
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 'l': address = loopback_address(optarg); break;
		case 'p': options.pipelining = 1; break;
		case 'd': options.drain = 1; break;
		case 'D': options.reply_delay_us = atol(optarg); break;
		case 'm': options.multiline = 1; break;
		case 'h': options.hash = 1; break;
		default: exit(2);
		}
	if (!address.sin_port)
		die("wanted: --listen HOST:PORT");
	return address;
}

static int *watch_new(int fd)
{
	int *place = allocate(sizeof(*place));
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = place };

	*place = fd;
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
	return place;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = read_options(argc, argv);
	struct epoll_event events[EVENTS];
	int *listener, *signals, *timer;
	sigset_t ends;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	signals = watch_new(signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC));
	timer = watch_new(timer_fd);
	listener = watch_new(listen_at(&address));
	for (;;) {
		int number = epoll_wait(epoll_fd, events, EVENTS, -1), due = 0, i;

		for (i = 0; i < number; i++) {
			void *source = events[i].data.ptr;
			uint64_t expirations;

			if (source == signals) {
				report();
				return 0;
			} else if (source == listener) {
				accept_all(*listener);
			} else if (source == timer) {
				due = read(timer_fd, &expirations, sizeof(expirations)) > 0;
			} else if (!options.reply_delay_us || events[i].events & EPOLLIN) {
				receive(source);
			}
		}
		if (due)        /* last, as it may free connections that these events are of */
			send_held();
	}
}
