/*
 * delayrelay: a TCP relay that delays all octets by a fixed time in each direction, without loss and
 * without a limit of bandwidth: a link to a distant client.
 *
 * The handshake is modelled too: the client's connect() returns at once, but the relay connects to the
 * server three delays later, so that the server's first octet arrives four delays (two round trips)
 * after connect(), as over a real link. TCP's slow start is not modelled.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common.h"

#define EVENTS 256
#define QUEUED_MOST (64u << 20)

struct link;

struct chunk {
	struct chunk *next;
	uint64_t due;
	size_t bytes, sent;            /* no bytes: the end */
	char data[];
};

struct end {
	int fd;
	struct link *link;
	int no_more;                    /* nothing more can be read from it */
	int shut;                       /* all has been written to it */
	unsigned watched;
	struct chunk *first, *last;     /* to be written to it */
	size_t queued;
};

struct link {
	struct end client, server;
	uint64_t connect_at;
	int connected, dead;
	struct link *next, *previous;
};

static struct sockaddr_in target;
static uint64_t delay_ns;
static int epoll_fd, timer_fd;
static struct link *links;

static struct end *other(struct end *end)
{
	return end == &end->link->client ? &end->link->server : &end->link->client;
}

static void watch(struct end *end, int operation, unsigned events)
{
	struct epoll_event event = { .events = events, .data.ptr = end };

	end->watched = events;
	epoll_ctl(epoll_fd, operation, end->fd, &event);
}

static void discard(struct end *end)
{
	if (end->fd >= 0)
		close(end->fd);
	end->fd = -1;
	while (end->first) {
		struct chunk *chunk = end->first;

		end->first = chunk->next;
		free(chunk);
	}
}

/* Its memory is freed by the next scan: events of this turn may still name it. */
static void kill_link(struct link *link)
{
	link->dead = 1;
	discard(&link->client);
	discard(&link->server);
}

static void enqueue(struct end *end, const char *data, size_t bytes)
{
	struct chunk *chunk = allocate(sizeof(*chunk) + bytes);

	chunk->due = now_ns() + delay_ns;
	chunk->bytes = bytes;
	memcpy(chunk->data, data, bytes);
	if (end->first)
		end->last->next = chunk;
	else
		end->first = chunk;
	end->last = chunk;
	end->queued += bytes;
}

/* 1: all of it is written; 0: not yet; -1: the link is dead. */
static int write_chunk(struct end *end, struct chunk *chunk)
{
	ssize_t written;

	if (!chunk->bytes) {
		shutdown(end->fd, SHUT_WR);
		end->shut = 1;
		return 1;
	}
	written = send(end->fd, chunk->data + chunk->sent, chunk->bytes - chunk->sent, MSG_NOSIGNAL);
	if (written < 0 && errno == EAGAIN)
		return 0;
	if (written < 0) {
		kill_link(end->link);
		return -1;
	}
	end->queued -= written;
	chunk->sent += written;
	return chunk->sent == chunk->bytes;
}

static void write_due(struct end *end)
{
	struct link *link = end->link;
	uint64_t now = now_ns();

	if (link->dead || end->fd < 0 || (end == &link->server && !link->connected))
		return;
	while (end->first && end->first->due <= now) {
		struct chunk *chunk = end->first;

		if (write_chunk(end, chunk) <= 0)
			return;
		end->first = chunk->next;
		free(chunk);
	}
	if (link->client.shut && link->server.shut)
		kill_link(link);
}

static void watch_what_matters(struct end *end, uint64_t now)
{
	unsigned events = 0;

	if (end->fd < 0)
		return;
	if (end == &end->link->server && !end->link->connected) {
		events = EPOLLOUT;
	} else {
		if (!end->no_more && other(end)->queued < QUEUED_MOST)
			events |= EPOLLIN;
		if (end->first && end->first->due <= now)
			events |= EPOLLOUT;
	}
	if (events != end->watched)
		watch(end, EPOLL_CTL_MOD, events);
}

static void connect_server(struct link *link)
{
	link->server.fd = new_socket();
	if (connect(link->server.fd, (struct sockaddr *)&target, sizeof(target)) < 0 && errno != EINPROGRESS)
		kill_link(link);
	else
		watch(&link->server, EPOLL_CTL_ADD, EPOLLOUT);
}

static void forget(struct link *link)
{
	if (link->previous)
		link->previous->next = link->next;
	else
		links = link->next;
	if (link->next)
		link->next->previous = link->previous;
	free(link);
}

static uint64_t earliest(uint64_t next, const struct end *end, uint64_t now)
{
	return end->first && end->first->due > now && end->first->due < next ? end->first->due : next;
}

/* Do what is due, and return when there is more. */
static uint64_t scan(void)
{
	uint64_t now = now_ns(), next = UINT64_MAX;
	struct link *link, *following;

	for (link = links; link; link = following) {
		following = link->next;
		if (!link->dead && link->server.fd < 0 && link->connect_at <= now)
			connect_server(link);
		write_due(&link->client);
		write_due(&link->server);
		if (link->dead) {
			forget(link);
			continue;
		}
		watch_what_matters(&link->client, now);
		watch_what_matters(&link->server, now);
		if (link->server.fd < 0 && link->connect_at < next)
			next = link->connect_at;
		next = earliest(earliest(next, &link->client, now), &link->server, now);
	}
	return next;
}

static void set_timer(uint64_t due)
{
	struct itimerspec time = { 0 };

	if (due != UINT64_MAX) {
		time.it_value.tv_sec = due / NS_PER_S;
		time.it_value.tv_nsec = due % NS_PER_S;
	}
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &time, NULL);
}

static void accept_all(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct link *link = allocate(sizeof(*link));

		link->client.fd = fd;
		link->server.fd = -1;
		link->client.link = link->server.link = link;
		link->connect_at = now_ns() + 3 * delay_ns;
		link->next = links;
		if (links)
			links->previous = link;
		links = link;
		watch(&link->client, EPOLL_CTL_ADD, EPOLLIN);
	}
}

static int has_connected(int fd)
{
	int error = 0;
	socklen_t bytes = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
	return !error;
}

static void receive(struct end *end)
{
	static char data[READ_BYTES];
	ssize_t bytes = recv(end->fd, data, sizeof(data), 0);

	if (bytes < 0 && errno == EAGAIN)
		return;
	end->no_more = bytes <= 0;
	enqueue(other(end), data, bytes > 0 ? bytes : 0);
}

static void handle(struct end *end, unsigned events)
{
	struct link *link = end->link;

	if (link->dead)
		return;
	if (end == &link->server && !link->connected) {
		link->connected = has_connected(end->fd);
		if (!link->connected) {
			kill_link(link);
			return;
		}
	}
	if (!end->no_more && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive(end);
	else if (end->no_more && events & EPOLLERR)
		kill_link(link);
	else if (end->no_more && events & EPOLLHUP)     /* reported over and over: asked for no longer */
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, end->fd, NULL);
}

static int read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "listen", 1, 0, 'l' }, { "target", 1, 0, 't' }, { "delay-ms", 1, 0, 'd' }, { 0, 0, 0, 0 }
	};
	struct sockaddr_in address = { 0 };
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 'l': address = loopback_address(optarg); break;
		case 't': target = loopback_address(optarg); break;
		case 'd': delay_ns = atof(optarg) * 1e6; break;
		default: exit(2);
		}
	if (!address.sin_port || !target.sin_port)
		die("wanted: --listen HOST:PORT --target HOST:PORT --delay-ms IN_EACH_DIRECTION");
	return listen_at(&address);
}

int main(int argc, char **argv)
{
	int listener = read_options(argc, argv);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &listener }, events[EVENTS];

	signal(SIGPIPE, SIG_IGN);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
	event.data.ptr = &timer_fd;
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
	for (;;) {
		int number = epoll_wait(epoll_fd, events, EVENTS, -1), i;

		for (i = 0; i < number; i++) {
			void *source = events[i].data.ptr;

			if (source == &listener)
				accept_all(listener);
			else if (source != &timer_fd)   /* set again by what follows, which also stops it */
				handle(source, events[i].events);
		}
		set_timer(scan());
	}
}
