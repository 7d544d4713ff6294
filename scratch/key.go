package scratch

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const keyBytes = 64 // AES-256-XTS takes two keys

// keyID is the kernel's name of a key: derived from it, and no secret.
type keyID [16]byte

// addKey gives the file system of dir a new random key and keeps none. The bytes
// are in a page of their own that is not swapped, not dumped and wiped before it
// is given back; no copy of them is made on this side.
func addKey(dir *os.File) (id keyID, retErr error) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return id, fmt.Errorf("a page for the key: %w", err)
	}
	defer func() {
		clear(page)
		if err := unix.Munmap(page); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("give the key's page back: %w", err))
		}
	}()
	if err := errors.Join(unix.Mlock(page), unix.Madvise(page, unix.MADV_DONTDUMP), unix.Madvise(page, unix.MADV_DONTFORK)); err != nil {
		return id, fmt.Errorf("protect the key's page: %w", err)
	}
	arg := (*unix.FscryptAddKeyArg)(unsafe.Pointer(&page[0]))
	arg.Key_spec.Type, arg.Raw_size = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, keyBytes
	raw := page[unsafe.Sizeof(*arg):][:keyBytes]
	if n, err := unix.Getrandom(raw, 0); err != nil || n != keyBytes {
		return id, fmt.Errorf("draw a key: %d bytes: %w", n, err)
	}
	if err := ioctl(dir, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(arg)); err != nil {
		return id, fmt.Errorf("%w: hand the key to the kernel (CONFIG_FS_ENCRYPTION): %w", ErrUnsupported, err)
	}
	return keyID(arg.Key_spec.U[:16]), nil
}

// encrypt makes the empty directory dir one in which everything is encrypted, and
// reads back that it is.
func encrypt(dir *os.File, id keyID) error {
	policy := unix.FscryptPolicyV2{
		Version: 2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS, Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32, Master_key_identifier: id,
	}
	if err := ioctl(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy)); err != nil {
		return fmt.Errorf("%w: encrypt a directory: %w", ErrUnsupported, err)
	}
	got := unix.FscryptGetPolicyExArg{Size: uint64(unsafe.Sizeof(policy))}
	if err := ioctl(dir, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, unsafe.Pointer(&got)); err != nil {
		return fmt.Errorf("read the encryption back: %w", err)
	}
	if *(*unix.FscryptPolicyV2)(unsafe.Pointer(&got.Policy)) != policy {
		return fmt.Errorf("%w: the kernel took another encryption policy than was given", ErrUnsupported)
	}
	return nil
}

// dropKey has the kernel wipe the key and evict what it opened.
func dropKey(dir *os.File, id keyID) error {
	arg := unix.FscryptRemoveKeyArg{Key_spec: unix.FscryptKeySpecifier{Type: unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER}}
	copy(arg.Key_spec.U[:], id[:])
	if err := ioctl(dir, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil && !errors.Is(err, unix.ENOKEY) {
		return fmt.Errorf("drop the key: %w", err)
	}
	return nil
}

// keyPresent says whether the kernel still has the key's secret.
func keyPresent(dir *os.File, id keyID) (bool, error) {
	arg := unix.FscryptGetKeyStatusArg{Key_spec: unix.FscryptKeySpecifier{Type: unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER}}
	copy(arg.Key_spec.U[:], id[:])
	if err := ioctl(dir, unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS, unsafe.Pointer(&arg)); err != nil {
		return false, fmt.Errorf("ask for the key: %w", err)
	}
	return arg.Status == unix.FSCRYPT_KEY_STATUS_PRESENT, nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
