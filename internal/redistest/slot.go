package redistest

import "strings"

// slotCount is the number of hash slots of a cluster.
const slotCount = 16384

// Slot returns the hash slot of a key: that of the part between the first opening brace
// and the next closing one, if there is such a part and it is not empty. It does not
// block.
func Slot(key string) int {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	return int(crc16(key)) % slotCount
}

// crc16 is CRC-16/XMODEM, the checksum that redis clusters use.
func crc16(s string) uint16 {
	var crc uint16
	for i := range len(s) {
		crc ^= uint16(s[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}
