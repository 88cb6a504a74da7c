/*
 * loadgen: an SMTP client that plays many sessions at once and checks every reply.
 *
 * A session is a list of groups: bytes to send, and the replies to wait for. The first group is the
 * greeting, with nothing to send. A client that goes in lock step has a group for each command; one
 * that pipelines groups as RFC 2920 lets it: [MAIL RCPT... DATA], [content . MAIL RCPT... DATA],
 * [content . QUIT]. A missing, surplus or wrong reply is an error and ends its session.
 *
 * With --hold all sessions are opened before the first message: it prints READY and waits for a line
 * on standard input; then each session sends message after message for --seconds, prints the result,
 * and stays open until standard input ends.
 *
 * The result is one JSON object on standard output.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <stddef.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common.h"

#define EVENTS 512
#define FAILED_MOST 1000       /* then no further session is started */
#define OPENING_MOST 64        /* sessions that wait for their greeting: no backlog overflows */
#define ERRORS_SHOWN 5
#define LINE_MOST 600

struct group {
	struct iovec parts[2];
	int part_count;
	size_t bytes;
	const int *codes;               /* of the replies that are due */
	const char *const *texts;       /* what they should contain; an entry or all may be NULL */
	int replies;
	int messages;                   /* accepted when the last reply has come */
};

struct script {
	struct group *groups;
	int count;
	int repeat_at, repeat_from;     /* with --hold, while there is time */
};

struct session {
	int fd;
	const struct script *script;
	int group;                      /* the current one, */
	size_t sent;                    /* how many of its bytes are sent, */
	int replies;                    /* and how many of its replies have come */
	int wants_write;
	int offered_pipelining;
	int resting;                    /* with --hold: nothing to do for now */
	int waits;
	uint64_t began;
	unsigned line_bytes;
	char line[LINE_MOST];           /* a reply line that has come in part */
};

static struct {
	struct sockaddr_in target;
	long sessions;                  /* in all; 0: as many as fit into `seconds` */
	double seconds;
	int at_once, messages, recipients;
	size_t bytes;                  /* of a message */
	int pipelined, forced;          /* forced: whether it is offered or not */
	int wait_for_dot;               /* send nothing more before the reply to the end of data */
	int hold;
	int addresses;                  /* of 127.0.0.0/8, to connect from */
	int check_texts, refused_every; /* each n-th recipient is one that the sink refuses */
	double patience;                /* seconds without any progress */
	const char *credentials;        /* USER:PASSWORD for AUTH PLAIN */
} options = { .at_once = 1, .messages = 1, .recipients = 1, .bytes = 2048, .addresses = 8, .patience = 30 };

static struct {
	long started, ended, failed, messages, replies, waits;
	long wrong, surplus, eof, connection, stalled;
	long unoffered;                 /* sessions that went in lock step for want of an offer */
	long own_text[2], passed_text[2];       /* of RCPT, MAIL: whose the reply's text is */
	uint64_t bytes_out, bytes_in;
} count;

static int epoll_fd;
static struct session *sessions;
static int *free_slots, free_count;
static int opening, resting, going;
static int progress;
static uint64_t last_progress;
static uint64_t deadline = UINT64_MAX;
static uint32_t *times_us;
static size_t times, times_room;
static int errors_shown;

static struct script lockstep, pipelined;
static int hello_group;         /* the last one before the first MAIL */
static char *envelope;          /* MAIL, RCPT..., DATA */
static size_t *line_at;         /* where each of its lines begins, and its end */
static int *envelope_codes;
static const char **envelope_texts;
static int *next_codes;         /* those of content, then of an envelope */
static const char **next_texts;
static char *content;           /* with its end of data */
static size_t content_bytes;
static char auth_command[512];

static const int c220[] = { 220 }, c221[] = { 221 }, c235[] = { 235 }, c250[] = { 250 };
static const int c250_221[] = { 250, 221 };

__attribute__((format(printf, 1, 2))) static void show(const char *format, ...)
{
	va_list values;

	if (errors_shown++ >= ERRORS_SHOWN)
		return;
	va_start(values, format);
	vfprintf(stderr, format, values);
	va_end(values);
	fputc('\n', stderr);
}

/* What is sent */

static void encode_base64(const unsigned char *in, size_t bytes, char *out)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t i;

	for (i = 0; i < bytes; i += 3) {
		unsigned second = i + 1 < bytes ? in[i + 1] : 0, third = i + 2 < bytes ? in[i + 2] : 0;
		unsigned bits = in[i] << 16 | second << 8 | third;

		*out++ = digits[bits >> 18 & 63];
		*out++ = digits[bits >> 12 & 63];
		*out++ = i + 1 < bytes ? digits[bits >> 6 & 63] : '=';
		*out++ = i + 2 < bytes ? digits[bits & 63] : '=';
	}
	*out = 0;
}

static void write_auth_command(void)
{
	unsigned char plain[256] = { 0 };       /* RFC 4616: NUL user NUL password */
	size_t bytes = strlen(options.credentials);
	char *colon;

	if (!strchr(options.credentials, ':') || bytes > 200)
		die("USER:PASSWORD is wanted, of 200 bytes at most");
	memcpy(plain + 1, options.credentials, bytes);
	colon = memchr(plain + 1, ':', bytes);
	*colon = 0;
	strcpy(auth_command, "AUTH PLAIN ");
	encode_base64(plain, bytes + 1, auth_command + strlen(auth_command));
	strcat(auth_command, "\r\n");
}

static void write_envelope(void)
{
	int lines = options.recipients + 2, i;
	char *p;

	p = envelope = allocate(64 * lines);
	line_at = allocate(sizeof(*line_at) * (lines + 1));
	next_codes = allocate(sizeof(*next_codes) * (lines + 1));
	next_texts = allocate(sizeof(*next_texts) * (lines + 1));
	next_codes[0] = 250;
	envelope_codes = next_codes + 1;
	envelope_texts = next_texts + 1;
	envelope_codes[0] = 250;
	envelope_texts[0] = options.check_texts ? "<sender@bench.example>" : NULL;
	p += sprintf(p, "MAIL FROM:<sender@bench.example>\r\n");
	for (i = 1; i <= options.recipients; i++) {
		int refused = options.refused_every && i % options.refused_every == 0 && options.recipients > 1;
		char path[64];

		sprintf(path, "<%s%d@rcpt.example>", refused ? "bad" : "user", i - 1);
		line_at[i] = p - envelope;
		envelope_codes[i] = refused ? 550 : 250;
		envelope_texts[i] = options.check_texts ? strdup(path) : NULL;
		p += sprintf(p, "RCPT TO:%s\r\n", path);
	}
	line_at[lines - 1] = p - envelope;
	envelope_codes[lines - 1] = 354;
	p += sprintf(p, "DATA\r\n");
	line_at[lines] = p - envelope;
}

/* A header and lines of 76 bytes, one of them dot-stuffed. */
static void write_content(void)
{
	char *p = content = allocate(options.bytes + 512);
	size_t line, i;

	p += sprintf(p, "From: <sender@bench.example>\r\nTo: <user0@rcpt.example>\r\n"
	                "Subject: benchmark message\r\nMessage-ID: <1@bench.example>\r\n\r\n..dot\r\n");
	for (line = 0; (size_t)(p - content) + 2 < options.bytes; line++) {
		size_t left = options.bytes - (p - content) - 2, bytes = left < 76 ? left : 76;

		for (i = 0; i < bytes; i++)
			*p++ = 'a' + (line + i) % 26;
		*p++ = '\r';
		*p++ = '\n';
	}
	options.bytes = p - content;
	memcpy(p, ".\r\n", 3);
	content_bytes = options.bytes + 3;
}

static struct group *add_group(struct script *script, const int *codes, const char *const *texts, int replies)
{
	struct group *group;

	script->groups = realloc(script->groups, sizeof(*group) * (script->count + 1));
	if (!script->groups)
		die("out of memory");
	group = &script->groups[script->count++];
	*group = (struct group){ .codes = codes, .texts = texts, .replies = replies };
	return group;
}

static void add_part(struct group *group, const void *bytes, size_t number)
{
	struct iovec *part = &group->parts[group->part_count++];

	part->iov_base = (void *)bytes;
	part->iov_len = number;
	group->bytes += number;
}

static void add_text(struct group *group, const char *text)
{
	add_part(group, text, strlen(text));
}

static void begin_script(struct script *script)
{
	add_group(script, c220, NULL, 1);
	add_text(add_group(script, c250, NULL, 1), "EHLO client.example\r\n");
	if (options.credentials)
		add_text(add_group(script, c235, NULL, 1), auth_command);
	hello_group = script->count - 1;
}

static void write_lockstep(void)
{
	struct script *script = &lockstep;
	struct group *group;
	int messages = options.hold ? 1 : options.messages, m, i;

	begin_script(script);
	for (m = 0; m < messages; m++) {
		for (i = 0; i < options.recipients + 2; i++) {
			group = add_group(script, envelope_codes + i, envelope_texts + i, 1);
			add_part(group, envelope + line_at[i], line_at[i + 1] - line_at[i]);
		}
		group = add_group(script, c250, NULL, 1);
		add_part(group, content, content_bytes);
		group->messages = 1;
	}
	script->repeat_at = script->count - 1;
	script->repeat_from = hello_group + 1;
	if (!options.hold)
		add_text(add_group(script, c221, NULL, 1), "QUIT\r\n");
}

static void write_pipelined(void)
{
	struct script *script = &pipelined;
	struct group *group;
	int replies = options.recipients + 2, messages = options.messages, m;
	size_t bytes = line_at[replies];

	/* the first ends with the envelope of a further one, the last with nothing */
	if (options.hold)
		messages = options.wait_for_dot ? 1 : 2;
	begin_script(script);
	add_part(add_group(script, envelope_codes, envelope_texts, replies), envelope, bytes);
	for (m = 1; m <= messages; m++) {
		group = add_group(script, c250, NULL, 1);
		add_part(group, content, content_bytes);
		group->messages = 1;
		if (m < messages && options.wait_for_dot) {
			add_part(add_group(script, envelope_codes, envelope_texts, replies), envelope, bytes);
		} else if (m < messages) {
			add_part(group, envelope, bytes);
			group->codes = next_codes;
			group->texts = next_texts;
			group->replies = replies + 1;
		} else if (!options.hold && options.wait_for_dot) {
			add_text(add_group(script, c221, NULL, 1), "QUIT\r\n");
		} else if (!options.hold) {
			add_text(group, "QUIT\r\n");
			group->codes = c250_221;
			group->replies = 2;
		}
	}
	script->repeat_at = hello_group + 2;
	script->repeat_from = options.wait_for_dot ? hello_group + 1 : hello_group + 2;
}

/* Sessions */

static void note_time(const struct session *s)
{
	if (times == times_room) {
		times_room = times_room ? times_room * 2 : 65536;
		times_us = realloc(times_us, times_room * sizeof(*times_us));
		if (!times_us)
			die("out of memory");
	}
	times_us[times++] = (now_ns() - s->began) / 1000;
}

static void finish(struct session *s, int ok)
{
	close(s->fd);
	s->fd = -1;
	opening -= s->group == 0;
	resting -= s->resting;
	count.waits += s->waits;
	free_slots[free_count++] = s - sessions;
	if (ok) {
		count.ended++;
		note_time(s);
	} else {
		count.failed++;
	}
}

static void bind_one_of_many(int fd)
{
	static unsigned turn;
	struct sockaddr_in source = { .sin_family = AF_INET };
	int one = 1;

	/* each address has ports of its own: thousands of sessions a second leave many in TIME_WAIT */
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	source.sin_addr.s_addr = htonl(0x7f000010u + turn++ % options.addresses);
	if (bind(fd, (struct sockaddr *)&source, sizeof(source)) < 0)
		die("bind: %s", strerror(errno));
}

static void start(void)
{
	struct session *s = &sessions[free_slots[--free_count]];
	struct epoll_event wanted = { .events = EPOLLIN, .data.ptr = s };

	memset(s, 0, offsetof(struct session, line));
	s->fd = new_socket();
	s->script = options.pipelined ? &pipelined : &lockstep;
	s->began = now_ns();
	s->waits = 1;
	count.started++;
	opening++;
	bind_one_of_many(s->fd);
	if (connect(s->fd, (struct sockaddr *)&options.target, sizeof(options.target)) < 0 && errno != EINPROGRESS) {
		show("connect: %s", strerror(errno));
		count.connection++;
		finish(s, 0);
		return;
	}
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &wanted) < 0)
		die("epoll_ctl: %s", strerror(errno));
}

static int may_start(void)
{
	if (options.sessions && count.started >= options.sessions)
		return 0;
	return count.failed < FAILED_MOST && now_ns() < deadline;
}

static void start_sessions(void)
{
	while (free_count && opening < OPENING_MOST && may_start())
		start();
}

static void watch_write(struct session *s, int wanted)
{
	struct epoll_event event = { .events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = s };

	if (s->wants_write == wanted)
		return;
	s->wants_write = wanted;
	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &event);
}

/* Send what the current group has left. -1: the session has failed. */
static int push(struct session *s)
{
	const struct group *group = &s->script->groups[s->group];

	while (s->sent < group->bytes) {
		struct iovec parts[2];
		struct msghdr message = { .msg_iov = parts };
		size_t skip = s->sent;
		ssize_t written;
		int i;

		for (i = 0; i < group->part_count; i++) {
			const struct iovec *part = &group->parts[i];

			if (skip < part->iov_len) {
				parts[message.msg_iovlen].iov_base = (char *)part->iov_base + skip;
				parts[message.msg_iovlen++].iov_len = part->iov_len - skip;
				skip = 0;
			} else {
				skip -= part->iov_len;
			}
		}
		written = sendmsg(s->fd, &message, MSG_NOSIGNAL);
		if (written < 0 && errno == EAGAIN) {
			watch_write(s, 1);
			return 0;
		}
		if (written < 0) {
			show("write: %s (group %d)", strerror(errno), s->group);
			count.connection++;
			return -1;
		}
		s->sent += written;
		count.bytes_out += written;
	}
	watch_write(s, 0);
	return 0;
}

static int push_group(struct session *s, int group)
{
	s->group = group;
	s->replies = 0;
	s->sent = 0;
	s->waits++;
	return push(s);
}

static int rest(struct session *s)
{
	s->resting = 1;
	resting++;
	return 0;
}

/* All replies of the group have come. 1: so the session has ended; -1: it has failed. */
static int next_group(struct session *s)
{
	opening -= s->group == 0;
	count.messages += s->script->groups[s->group].messages;
	if (s->group == 1 && options.pipelined && !options.forced && !s->offered_pipelining) {
		s->script = &lockstep;
		count.unoffered++;
	}
	if (options.hold && s->group == hello_group && !going)
		return rest(s);
	if (options.hold && s->group == s->script->repeat_at && now_ns() < deadline)
		return push_group(s, s->script->repeat_from);
	if (s->group + 1 < s->script->count)
		return push_group(s, s->group + 1);
	return options.hold ? rest(s) : 1;
}

/* A proxy that answers itself makes no error: it is only counted whose text it was. */
static void note_text(const char *expected, const char *line, size_t bytes)
{
	int of_mail = !!strstr(expected, "<sender@");

	if (memmem(line, bytes, expected, strlen(expected)))
		count.passed_text[of_mail]++;
	else
		count.own_text[of_mail]++;
}

/* A reply line without its end. 1: it ends a reply; 0: more is to come; -1: an error. */
static int take_line(struct session *s, const char *line, size_t bytes)
{
	const struct group *group = &s->script->groups[s->group];
	int code;

	if (bytes < 3 || line[0] < '2' || line[0] > '5' || (bytes > 3 && line[3] != ' ' && line[3] != '-')) {
		show("not a reply: %.*s", (int)bytes, line);
		count.wrong++;
		return -1;
	}
	if (s->group == 1 && bytes >= 14 && !strncasecmp(line + 4, "PIPELINING", 10))
		s->offered_pipelining = 1;
	if (bytes > 3 && line[3] == '-')
		return 0;
	count.replies++;
	if (s->replies >= group->replies) {
		show("surplus reply in group %d: %.*s", s->group, (int)bytes, line);
		count.surplus++;
		return -1;
	}
	code = (line[0] - '0') * 100 + (line[1] - '0') * 10 + (line[2] - '0');
	if (code != group->codes[s->replies]) {
		show("group %d, reply %d: %d was due, not %.*s", s->group, s->replies + 1, group->codes[s->replies],
		     (int)bytes, line);
		count.wrong++;
		return -1;
	}
	if (group->texts && group->texts[s->replies])
		note_text(group->texts[s->replies], line, bytes);
	s->replies++;
	return 1;
}

static int take_reply(struct session *s, size_t after)
{
	const struct group *group = &s->script->groups[s->group];

	if (s->replies < group->replies)
		return 0;
	if (s->sent < group->bytes || after) {
		show("more than the replies of group %d has come", s->group);
		count.surplus++;
		return -1;
	}
	return next_group(s);
}

/* 1: the session has ended; -1: it has failed. */
static int take(struct session *s, const char *bytes, size_t number)
{
	while (number) {
		const char *newline = memchr(bytes, '\n', number), *line = bytes;
		size_t taken = newline ? (size_t)(newline - bytes) + 1 : number, length = taken;
		int result;

		if (!newline || s->line_bytes) {
			if (s->line_bytes + taken > sizeof(s->line)) {
				show("a reply line is too long");
				count.wrong++;
				return -1;
			}
			memcpy(s->line + s->line_bytes, bytes, taken);
			s->line_bytes += taken;
			line = s->line;
			length = s->line_bytes;
		}
		bytes += taken;
		number -= taken;
		if (!newline)
			return 0;
		s->line_bytes = 0;
		while (length && (line[length - 1] == '\n' || line[length - 1] == '\r'))
			length--;
		result = take_line(s, line, length);
		if (result > 0)
			result = take_reply(s, number);
		if (result)
			return result;
	}
	return 0;
}

static void receive(struct session *s)
{
	static char bytes[READ_BYTES];
	ssize_t number = recv(s->fd, bytes, sizeof(bytes), 0);
	int result;

	if (number < 0 && errno == EAGAIN)
		return;
	if (number < 0) {
		show("read: %s (group %d)", strerror(errno), s->group);
		count.connection++;
		finish(s, 0);
		return;
	}
	if (number == 0) {
		show("closed in group %d after %d replies", s->group, s->replies);
		count.eof++;
		finish(s, 0);
		return;
	}
	count.bytes_in += number;
	result = take(s, bytes, number);
	if (result)
		finish(s, result > 0);
}

static void handle(struct session *s, unsigned events)
{
	if (s->fd < 0)
		return;
	progress = 1;
	if (events & EPOLLOUT && push(s) < 0) {
		finish(s, 0);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive(s);
}

static void give_up_stalled(void)
{
	int i;

	for (i = 0; i < options.at_once; i++) {
		struct session *s = &sessions[i];

		if (s->fd < 0 || s->resting)
			continue;
		show("stalled in group %d after %d of %d replies", s->group, s->replies,
		     s->script->groups[s->group].replies);
		count.stalled++;
		finish(s, 0);
	}
}

/* Wait for events once, and handle them. 0: nothing has come for too long. */
static int turn(void)
{
	static struct epoll_event events[EVENTS];
	int number = epoll_wait(epoll_fd, events, EVENTS, 200), i;

	for (i = 0; i < number; i++)
		handle(events[i].data.ptr, events[i].events);
	if (progress)
		last_progress = now_ns();
	progress = 0;
	return now_ns() - last_progress < (uint64_t)(options.patience * NS_PER_S);
}

static int open_sessions(void)
{
	return options.at_once - free_count;
}

/* Until nobody has anything to do. */
static void play(void)
{
	last_progress = now_ns();
	for (;;) {
		if (!options.hold || !going)
			start_sessions();
		if (open_sessions() == resting && (going || !may_start()))
			return;
		if (!turn()) {
			give_up_stalled();
			return;
		}
	}
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static double at_percentile(double share)
{
	return times ? times_us[(size_t)((times - 1) * share)] / 1e6 : 0;
}

static double seconds_of(struct timeval time)
{
	return time.tv_sec + time.tv_usec / 1e6;
}

static void report(double seconds)
{
	struct rusage usage;

	qsort(times_us, times, sizeof(*times_us), compare);
	getrusage(RUSAGE_SELF, &usage);
	printf("{\"seconds\": %.6f, \"sessions\": %ld, \"open\": %d, \"failed\": %ld, \"messages\": %ld, "
	       "\"replies\": %ld, ",
	       seconds, count.ended, open_sessions(), count.failed, count.messages, count.replies);
	printf("\"session_s\": {\"median\": %.6f, \"p99\": %.6f, \"max\": %.6f}, ",
	       at_percentile(0.5), at_percentile(0.99), at_percentile(1));
	printf("\"waits\": %ld, \"wrong\": %ld, \"surplus\": %ld, \"eof\": %ld, \"connection\": %ld, \"stalled\": %ld, ",
	       count.waits, count.wrong, count.surplus, count.eof, count.connection, count.stalled);
	printf("\"own_text\": {\"rcpt\": %ld, \"mail\": %ld}, \"passed_text\": {\"rcpt\": %ld, \"mail\": %ld}, ",
	       count.own_text[0], count.own_text[1], count.passed_text[0], count.passed_text[1]);
	printf("\"mode\": \"%s\", \"message_bytes\": %zu, \"bytes_out\": %llu, \"bytes_in\": %llu, \"cpu_s\": %.4f}\n",
	       options.pipelined && !count.unoffered ? "pipelined" : "lockstep", options.bytes,
	       (unsigned long long)count.bytes_out, (unsigned long long)count.bytes_in,
	       seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime));
	fflush(stdout);
}

/* Wait for a line on standard input. 0: there is none. */
static int told_to_go_on(void)
{
	int character;

	while ((character = getchar()) != EOF && character != '\n')
		;
	return character != EOF;
}

static void set_deadline(void)
{
	if (options.seconds > 0)
		deadline = now_ns() + (uint64_t)(options.seconds * NS_PER_S);
}

static int go(struct session *s)
{
	if (s->fd < 0)
		return 0;
	s->resting = 0;
	resting--;
	return push_group(s, hello_group + 1);
}

static void play_held(void)
{
	uint64_t began;
	int i;

	play();
	printf("READY %d %ld\n", resting, count.failed);
	fflush(stdout);
	if (!told_to_go_on())
		return;
	going = 1;
	began = now_ns();
	set_deadline();
	for (i = 0; i < options.at_once; i++)
		if (go(&sessions[i]) < 0)
			finish(&sessions[i], 0);
	play();
	report((now_ns() - began) / 1e9);
	while (told_to_go_on())
		;
}

static void play_on(void)
{
	uint64_t began = now_ns();

	set_deadline();
	play();
	report((now_ns() - began) / 1e9);
}

static void read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "target", 1, 0, 't' },      { "sessions", 1, 0, 's' },     { "seconds", 1, 0, 'd' },
		{ "at-once", 1, 0, 'c' },     { "messages", 1, 0, 'm' },     { "recipients", 1, 0, 'r' },
		{ "bytes", 1, 0, 'b' },      { "pipelined", 0, 0, 'p' },    { "forced", 0, 0, 'f' },
		{ "hold", 0, 0, 'h' },        { "credentials", 1, 0, 'a' },  { "addresses", 1, 0, 'S' },
		{ "patience", 1, 0, 'T' },    { "check-texts", 0, 0, 'e' },  { "refused-every", 1, 0, 'B' },
		{ "wait-for-dot", 0, 0, 'w' }, { 0, 0, 0, 0 }
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 't': options.target = loopback_address(optarg); break;
		case 's': options.sessions = atol(optarg); break;
		case 'd': options.seconds = atof(optarg); break;
		case 'c': options.at_once = atoi(optarg); break;
		case 'm': options.messages = atoi(optarg); break;
		case 'r': options.recipients = atoi(optarg); break;
		case 'b': options.bytes = atol(optarg); break;
		case 'p': options.pipelined = 1; break;
		case 'f': options.pipelined = options.forced = 1; break;
		case 'h': options.hold = 1; break;
		case 'a': options.credentials = optarg; break;
		case 'S': options.addresses = atoi(optarg); break;
		case 'T': options.patience = atof(optarg); break;
		case 'e': options.check_texts = 1; break;
		case 'B': options.refused_every = atoi(optarg); break;
		case 'w': options.wait_for_dot = 1; break;
		default: exit(2);
		}
	if (options.hold)
		options.sessions = options.at_once;
	if (!options.target.sin_port || options.at_once < 1 || options.messages < 1 || options.recipients < 1
	    || options.addresses < 1)
		die("wanted: --target HOST:PORT, and counts above 0");
	if (!options.sessions && options.seconds <= 0)
		die("wanted: --sessions or --seconds");
}

int main(int argc, char **argv)
{
	int i;

	signal(SIGPIPE, SIG_IGN);
	read_options(argc, argv);
	if (options.credentials)
		write_auth_command();
	write_envelope();
	write_content();
	write_lockstep();
	write_pipelined();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	sessions = allocate(sizeof(*sessions) * options.at_once);
	free_slots = allocate(sizeof(*free_slots) * options.at_once);
	for (i = options.at_once - 1; i >= 0; i--) {
		sessions[i].fd = -1;
		free_slots[free_count++] = i;
	}
	if (options.hold)
		play_held();
	else
		play_on();
	return count.failed != 0;
}
