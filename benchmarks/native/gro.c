/* SPDX-License-Identifier: BSD-3-Clause */
#include "gro.h"
#include "engine.h"

#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *changed; /* the interface to put back */

static int ethtool(const char *interface, struct ethtool_value *value)
{
	struct ifreq request = {.ifr_data = (char *)value};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		return -1;
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
	err = ioctl(fd, SIOCETHTOOL, &request);
	close(fd);
	return err;
}

bool gro_on(const char *interface)
{
	struct ethtool_value value = {.cmd = ETHTOOL_GGRO};

	if (!ethtool(interface, &value) && value.data)
		return true;
	value = (struct ethtool_value){.cmd = ETHTOOL_SGRO, .data = 1};
	if (ethtool(interface, &value)) {
		complain("%s: cannot turn GRO on: %s", interface, strerror(errno));
		return false;
	}
	changed = interface;
	return true;
}

void gro_restore(void)
{
	struct ethtool_value value = {.cmd = ETHTOOL_SGRO};

	if (changed)
		ethtool(changed, &value);
	changed = NULL;
}
