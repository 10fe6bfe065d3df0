/* SPDX-License-Identifier: BSD-3-Clause */
/* The packet of job tx: UDP between two addresses of RFC 2544's range, with zeros for payload. */
#include "engine.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static __u16 ip_checksum(const struct iphdr *header)
{
	__u16 word[sizeof(*header) / 2];
	__u32 sum = 0;

	memcpy(word, header, sizeof(word));
	for (size_t i = 0; i < sizeof(word) / 2; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

int build_packet(__u8 *packet)
{
	struct ether_header *eth = (struct ether_header *)packet;
	struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
	struct udphdr udp = {.source = htons(4242), .dest = htons(4242)};
	struct ifreq request = {};
	int fd = socket(AF_INET, SOCK_DGRAM, 0), err;

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", opt.in);
	err = fd < 0 ? -1 : ioctl(fd, SIOCGIFHWADDR, &request);
	if (err)
		complain("%s: cannot read its address: %s", opt.in, strerror(errno));
	if (fd >= 0)
		close(fd);
	if (err)
		return err;
	memset(packet, 0, opt.size);
	memcpy(eth->ether_dhost, &opt.dst, ETH_ALEN);
	memcpy(eth->ether_shost, request.ifr_hwaddr.sa_data, ETH_ALEN);
	eth->ether_type = htons(ETHERTYPE_IP);
	ip.tot_len = htons(opt.size - sizeof(*eth));
	ip.saddr = htonl(0xc6120001); /* 198.18.0.1 to .2: the range of RFC 2544 */
	ip.daddr = htonl(0xc6120002);
	ip.check = ip_checksum(&ip);
	udp.len = htons(opt.size - sizeof(*eth) - sizeof(ip));
	memcpy(packet + sizeof(*eth), &ip, sizeof(ip));
	memcpy(packet + sizeof(*eth) + sizeof(ip), &udp, sizeof(udp));
	memcpy(packet, opt.template, opt.template_len);
	return 0;
}
