package containerd

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// gcRoot is containerd's own label: what has it is never collected.
const gcRoot = "containerd.io/gc.root"

// viewKey is the name of the one read-only snapshot through which all
// sandboxes of an image see its layers. Making one takes milliseconds, so it
// is made with the image and kept.
func viewKey(dgst string) string { return "faasd-sec-view-" + dgst }

// heldImage is an image that is ready to be a sandbox's root.
type heldImage struct {
	image    runtime.Image
	layers   []string // directories on the host, topmost first
	uid, gid int      // the function's, where the node asks for the image's
	userErr  error    // why the image's USER gives none
}

// imageCache remembers held images by digest.
type imageCache struct {
	mu     sync.Mutex
	held   map[string]heldImage
	users  map[string]int   // sandboxes that were bound and have no lease yet, by digest
	idle   *sync.Cond       // a count of users fell to zero
	points map[string]error // what checkMountPoints said, by digest and mount points
}

func newImageCache() *imageCache {
	c := &imageCache{held: make(map[string]heldImage), users: make(map[string]int), points: make(map[string]error)}
	c.idle = sync.NewCond(&c.mu)
	return c
}

// hold keeps the image of a digest from drop until unhold.
func (c *imageCache) hold(d string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.held[d]; !ok {
		return fmt.Errorf("image %s was forgotten meanwhile", d)
	}
	c.users[d]++
	return nil
}

func (c *imageCache) unhold(d string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[d]--; c.users[d] == 0 {
		delete(c.users, d)
		c.idle.Broadcast()
	}
}

// mountPoints is checkMountPoints, looked up once for each image and set.
func (c *imageCache) mountPoints(img heldImage, dirs []string) error {
	key := img.image.Digest + "\x00" + strings.Join(dirs, "\x00")
	c.mu.Lock()
	err, known := c.points[key]
	c.mu.Unlock()
	if known {
		return err
	}
	err = checkMountPoints(dirs, img.layers)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.points) >= 4096 { // a bound, not a policy
		clear(c.points)
	}
	c.points[key] = err
	return err
}

func (c *imageCache) get(d string) (heldImage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.held[d]
	return h, ok
}

func (c *imageCache) put(d string, h heldImage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[d] = h
}

func (c *imageCache) drop(d string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.held, d)
	for c.users[d] > 0 { // each ends soon, by a deadline of its own
		c.idle.Wait()
	}
}

func newImageRecord(target ocispec.Descriptor) images.Image {
	return images.Image{Name: imageName(target.Digest.String()), Target: target, Labels: map[string]string{labelImage: "1"}}
}

// view makes the image's View, or finds it, and returns its layers.
func (r *Runtime) view(ctx context.Context, dgst, chainID string) ([]string, error) {
	sn := r.client.SnapshotService(r.cfg.Snapshotter)
	key := viewKey(dgst)
	labels := snapshots.WithLabels(map[string]string{gcRoot: time.Now().UTC().Format(time.RFC3339), labelImage: dgst})
	mounts, err := sn.View(ctx, key, chainID, labels)
	if errdefs.IsAlreadyExists(err) {
		if mounts, err = sn.Mounts(ctx, key); err == nil {
			// Forget may have taken the label off while a sandbox held the view.
			_, err = sn.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{gcRoot: time.Now().UTC().Format(time.RFC3339)}}, "labels."+gcRoot)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("view image %s: %w", dgst, err)
	}
	return lowerDirs(mounts)
}

// releaseView lets the garbage collector have the view once no sandbox's lease
// holds it.
func (r *Runtime) releaseView(ctx context.Context, dgst string) error {
	sn := r.client.SnapshotService(r.cfg.Snapshotter)
	_, err := sn.Update(ctx, snapshots.Info{Name: viewKey(dgst), Labels: map[string]string{gcRoot: ""}}, "labels."+gcRoot)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release the view of image %s: %w", dgst, err)
	}
	return nil
}

// lowerDirs reads the layers, topmost first, out of the mounts of a View: an
// overlay of several, or a bind mount of the only one.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("a view of %d mounts is not supported: set Config.Snapshotter to overlayfs", len(mounts))
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return []string{m.Source}, nil
	case "overlay":
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				return strings.Split(dirs, ":"), nil
			}
		}
	}
	return nil, fmt.Errorf("a view of type %q without lowerdir is not supported: set Config.Snapshotter to overlayfs", m.Type)
}

// quoteFilter quotes a label name in a containerd filter.
func quoteFilter(label string) string { return `"` + label + `"` }
