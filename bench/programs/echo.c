/* The smallest function that a person would write in C: it takes connections on
 * file descriptor 3 and answers each HTTP request with "hello". With BENCH_DIAL
 * it connects to that unix socket instead, writes one byte and waits for the
 * end, which is how the floors measure a start. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LISTEN = 3, CONNS = 32, BUFFER = 32 << 10 };

static const char reply[] = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
static char buffer[BUFFER + 1];

static int dial(const char *path) {
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char c = '1';
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || strlen(path) >= sizeof a.sun_path)
		return 1;
	strcpy(a.sun_path, path);
	if (connect(fd, (struct sockaddr *)&a, sizeof a) || write(fd, &c, 1) != 1)
		return 1;
	while (read(fd, &c, 1) > 0)
		;
	return 0;
}

/* answer reads one request whole and replies; 0 means that the connection is over. */
static int answer(int fd) {
	size_t have = 0, want = 0;
	for (;;) {
		ssize_t n = read(fd, buffer + have, BUFFER - have);
		if (n <= 0)
			return 0;
		have += n;
		buffer[have] = 0;
		if (!want) {
			char *end = strstr(buffer, "\r\n\r\n");
			if (!end && have == BUFFER)
				return 0;
			if (!end)
				continue;
			want = end + 4 - buffer;
			for (char *p = strstr(buffer, "\r\n"); p < end; p = strstr(p + 2, "\r\n"))
				if (!strncasecmp(p + 2, "content-length:", 15)) {
					unsigned long body = strtoul(p + 17, 0, 10);
					if (body > BUFFER - want)
						return 0;
					want += body;
				}
		}
		if (have >= want)
			return write(fd, reply, sizeof reply - 1) == sizeof reply - 1;
	}
}

int main(void) {
	const char *path = getenv("BENCH_DIAL");
	struct pollfd p[CONNS] = {{.fd = LISTEN, .events = POLLIN}};
	int n = 1;
	if (path)
		return dial(path);
	for (;;) {
		if (poll(p, n, -1) < 0)
			return 1;
		for (int i = n - 1; i > 0; i--)
			if (p[i].revents && !answer(p[i].fd)) {
				close(p[i].fd);
				p[i] = p[--n];
			}
		if (p[0].revents & POLLIN) {
			int fd = accept(LISTEN, 0, 0);
			if (fd >= 0 && n < CONNS)
				p[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
			else if (fd >= 0)
				close(fd);
		}
	}
}
