// Package scratch makes disk space for one sandbox at a time: exactly as much as
// was promised, really reserved, encrypted at rest with a key that nobody keeps,
// and gone with its last user.
//
// A volume is a file without a name, allocated in full, under a loop device,
// with an ext4 on it in which one directory is encrypted by the kernel (fscrypt
// version 2, AES-256-XTS for contents, AES-256-CTS for names). The key is random,
// is handed to the kernel and wiped at once.
//
// Promised: a volume whose Create returned has its blocks on the disk, so that
// filling it cannot fail for want of space before its own end is reached; neither
// contents nor names of files are ever in clear on the disk; file, loop device
// and mount live as long as somebody holds the mount and no longer, also where
// the daemon is killed at any moment, since all of them are the kernel's and none
// has a name. A kernel that cannot encrypt is refused.
//
// Not promised: that root of the host cannot read a volume while it is in use, as
// it can read the memory of the sandbox. How many files there are, how large and
// when they were written is not hidden either. What was freed stays on the disk
// as ciphertext without a key.
package scratch
