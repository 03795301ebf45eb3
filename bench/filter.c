/* The smallest connector there is: what comes in on stdin goes out on stdout.
 *
 * For the peers it speaks their dialects: a CGI answer begins with a header, and webhook, which has no way to stdin,
 * hands the body over in PAYLOAD. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void put(const char *data, size_t left)
{
	while (left > 0) {
		ssize_t done = write(1, data, left);
		if (done < 0)
			_exit(1);
		data += done;
		left -= (size_t)done;
	}
}

int main(void)
{
	static char buffer[1 << 16];
	const char *payload = getenv("PAYLOAD");
	ssize_t size;

	if (getenv("GATEWAY_INTERFACE") != NULL)
		put("Content-Type: application/json\r\n\r\n", 34);
	if (payload != NULL)
		put(payload, strlen(payload));
	while ((size = read(0, buffer, sizeof buffer)) > 0)
		put(buffer, (size_t)size);
	return size < 0;
}
