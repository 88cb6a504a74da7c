/* What the three programs of the benchmark have in common. */
#ifndef COMMON_H
#define COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define READ_BYTES 262144

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vfprintf(stderr, format, values);
	va_end(values);
	fputc('\n', stderr);
	exit(2);
}

static inline void *allocate(size_t bytes)
{
	void *memory = calloc(1, bytes ? bytes : 1);

	if (!memory)
		die("out of memory");
	return memory;
}

/* HOST:PORT, an IPv4 address of this machine's loopback: nothing here may reach another machine. */
static inline struct sockaddr_in loopback_address(const char *text)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	const char *colon = strrchr(text, ':');
	char host[64];

	if (!colon || (size_t)(colon - text) >= sizeof(host))
		die("HOST:PORT is wanted, not %s", text);
	memcpy(host, text, colon - text);
	host[colon - text] = 0;
	address.sin_port = htons(atoi(colon + 1));
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || !address.sin_port)
		die("not an IPv4 address and port: %s", text);
	if (ntohl(address.sin_addr.s_addr) >> 24 != 127)
		die("not in 127.0.0.0/8: %s", text);
	return address;
}

static inline int new_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static inline int listen_at(const struct sockaddr_in *address)
{
	int fd = new_socket(), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 || listen(fd, 4096) < 0)
		die("listen: %s", strerror(errno));
	return fd;
}

#endif
