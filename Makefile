# Sampan. `make` tells what there is; everything runs as root on Debian 12 with Rust.

PREFIX  ?= /usr/local
DESTDIR ?=
TARGET  := target/$(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := $(TARGET)/release
INSTALLED := target/bench
CNI     := $(DESTDIR)$(PREFIX)/libexec/sampan/cni
IMAGES  := nginx python-app redis
ROOT    ?= /var/lib/sampan

# what building and the demo need; what the tests need besides (the peers they compare with)
BUILD_PACKAGES := gcc libc6-dev
DEMO_PACKAGES  := $(BUILD_PACKAGES) curl iproute2 util-linux
TEST_PACKAGES  := $(DEMO_PACKAGES) apache2-utils binutils bsdutils busybox-static catatonit conmon containerd containernetworking-plugins cron \
                  docker-compose docker-registry iptables jq munge nftables openrc openssl podman procps python3 python3-pip \
                  python3-seccomp runc skopeo slurm-wlm strace systemd uidmap umoci

# the peers that `make bench` compares with
BENCH_PACKAGES := $(BUILD_PACKAGES) binutils bubblewrap busybox-static containernetworking-plugins crun iptables runc strace util-linux
VM_PACKAGES    := $(BUILD_PACKAGES) binutils busybox-static containernetworking-plugins cpio iproute2 iptables nftables \
                  munge python3 qemu-system-x86 seabios slurm-wlm socat systemd util-linux

.PHONY: help build release installed lint test test-vm bench bench-network bench-launch bench-strace hot demo install clean packages-build packages-demo packages-test packages-bench packages-vm nextest

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: packages-build ## debug build of everything
	cargo build --workspace --locked

release: packages-build ## the static binary and the plugins
	cargo build --workspace --release --locked

lint: packages-build ## formatting, clippy and rustdoc without a warning
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test: packages-test nextest lint target/pymesos ## every test, those that need root included
	cargo build --workspace --locked
	cargo nextest run --workspace --locked --no-fail-fast
	cargo test --workspace --doc --locked

test-vm: packages-vm ## cgroup, container and network tests on Debian's kernel in QEMU, on one host and on three
	tests/vm/run

# as a user has them: a linker writes its file page by page, and such a file is slower to run from
installed: release
	install -D -t $(INSTALLED) $(RELEASE)/sampan $(RELEASE)/cni-plugins

bench: bench-network bench-launch packages-bench installed ## sampan-oci against crun, runc, bubblewrap and unshare; ROUNDS=200, figures to target/bench.json
	cargo bench --profile dev --locked --bench runtimes -- --sampan $(INSTALLED)/sampan --rounds $(or $(ROUNDS),200) --json target/bench.json

bench-network: packages-bench installed ## our CNI plugins against the reference ones; ROUNDS=100, figures to target/bench-network.json
	cargo bench --locked --bench network -- --plugins $(INSTALLED)/cni-plugins --rounds $(or $(ROUNDS),100) --json target/bench-network.json

bench-launch: packages-bench installed ## launches of the Mesos executor: tasks per second, processor time, memory; TASKS=1000, figures to target/bench-launch.json
	cargo bench --profile dev --locked --bench launch -- --sampan $(INSTALLED)/sampan --tasks $(or $(TASKS),1000) --json target/bench-launch.json

bench-strace: packages-bench installed ## the system calls of one `run` of each, to target/strace
	cargo bench --profile dev --locked --bench runtimes -- --sampan $(INSTALLED)/sampan --strace target/strace

hot: packages-bench ## src/seal/hot.ld anew: which functions a start needs (minutes; after larger changes of the container core)
	cargo rustc --release --locked --bin sampan -- -C strip=none
	cargo bench --profile dev --locked --bench runtimes -- --sampan $(RELEASE)/sampan --hot src/seal/hot.ld \
	  --also "cargo bench --profile dev --locked --bench launch -- --sampan $(RELEASE)/sampan --tasks 2 --one-by-one 1 --held 2"

demo: packages-demo release $(IMAGES:%=target/images/%) ## nginx, an application and redis as one pod with two networks
	@$(foreach i,$(IMAGES),$(RELEASE)/sampan --root $(ROOT) image import target/images/$i &&) true
	@SAMPAN_ROOT=$(ROOT) demo/run $(RELEASE)/sampan

# An OCI layout of an image, made again when its definition, or the one it stands on, changed.
.SECONDEXPANSION:
target/images/%: $$(wildcard images/$$*/*) $$(wildcard images/debian-base/*) | release
	$(RELEASE)/sampan image build images/$* -o $@
	@touch $@

# An executor library that others wrote, which the tests run against the test agent. Its parser of HTTP comes without the
# part in C, which today's Python does not compile.
PYMESOS := pymesos==0.3.15 six==1.16.0 addict==2.4.0
HTTP_PARSER := 0.9.0
target/pymesos:
	rm -rf $@.new && python3 -m pip install -q --no-deps --target $@.new $(PYMESOS)
	cd $@.new && python3 -m pip download -q --no-deps --no-binary :all: http-parser==$(HTTP_PARSER) && \
	  tar xzf http-parser-$(HTTP_PARSER).tar.gz --strip-components 1 --wildcards '*/http_parser/*.py'
	mv $@.new $@

install: ## install what `make release` built, with completions and man pages
	install -D -m 755 $(RELEASE)/sampan $(DESTDIR)$(PREFIX)/bin/sampan
	ln -sf sampan $(DESTDIR)$(PREFIX)/bin/sampan-oci
	install -D -m 755 $(RELEASE)/cni-plugins $(CNI)/cni-plugins
	for name in $$($(RELEASE)/cni-plugins --list); do ln -sf cni-plugins $(CNI)/$$name || exit; done
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(RELEASE)/sampan man $(DESTDIR)$(PREFIX)/share/man/man1
	$(foreach n,sampan sampan-oci,\
	  $(RELEASE)/sampan completions bash --name $n | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$n && \
	  $(RELEASE)/sampan completions zsh --name $n | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_$n && \
	  $(RELEASE)/sampan completions fish --name $n | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$n.fish &&) true

clean: ## remove what was built
	cargo clean

# Installs only what is missing, and sees to the package lists, which building images reads too. A server that comes with a
# package is not started: invoke-rc.d(8) heeds RUNLEVEL.
define install-packages
@missing=; for p in $(1); do \
    [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; \
done; \
{ [ -z "$$missing" ] && ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; } || apt-get update -qq; \
[ -z "$$missing" ] || RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $$missing
endef

packages-build:
	$(call install-packages,$(BUILD_PACKAGES))

packages-demo:
	$(call install-packages,$(DEMO_PACKAGES))

packages-bench:
	$(call install-packages,$(BENCH_PACKAGES))

packages-vm:
	$(call install-packages,$(VM_PACKAGES))

packages-test:
	$(call install-packages,$(TEST_PACKAGES))

nextest:
	@command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
