# Builds, installs, packages and tests banger.
#
#   make              build everything (as any user; needs cargo and a C compiler)
#   make install      install it: DESTDIR=, PREFIX=/usr, and the directories below. This is the one
#                     list of installed files: the .deb, the .rpm and the lab all use it.
#   make uninstall    remove what install put there
#   make deb          target/debian/banger_VERSION_ARCH.deb (needs debhelper)
#   make rpm          target/rpm/banger-VERSION-RELEASE.ARCH.rpm (needs rpmbuild)
#   make release-interfaces  a release's interfaces become what later versions are compared with
#   make dist         target/dist/banger-VERSION.tar.xz: what is committed, with all crates
#   make check        formatting, lints, unit tests, packages, unit files, system tests (root: boots the lab)
#   make check-unit   the part of it that needs no root
#   make check-packages  the part about the .deb and the .rpm: lints, file lists, and all that can
#                     happen to them in the lab
#   make check-system the part that runs in the lab; ARGS= goes to nextest
#   make check-release  what a release is held to besides: the tarball, packages with dbus-broker (root)
#   make check-newest what banger uses of the newest systemd, in a lab of Debian sid (root)
#   make audit        whether anything bad is known of the crates (cargo-deny, from the network)
#   make bench        how long a VM takes to be ready, beside the same VMM by hand, and how long the
#                     services take to answer with 1000 VMs, and netd to say where a VM is (root)
#   make demo         boots the lab and runs a microVM in it (root)
#   make clean        remove what was built; the lab has `tests/lab/down --all`
#
# PROFILE=NAME builds with another cargo profile; CARGO_FLAGS=--offline and the like go to cargo.

PREFIX      ?= /usr
SYSCONFDIR  ?= /etc
BINDIR      ?= $(PREFIX)/bin
LIBEXECDIR  ?= $(PREFIX)/libexec/banger
LIBDIR      ?= $(PREFIX)/lib/banger
UNITDIR     ?= $(PREFIX)/lib/systemd/system
GENERATORDIR ?= $(PREFIX)/lib/systemd/system-generators
NETWORKDIR  ?= $(PREFIX)/lib/systemd/network
NMCONFDIR   ?= $(PREFIX)/lib/NetworkManager/conf.d
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
SYSCTLDIR   ?= $(PREFIX)/lib/sysctl.d
PRESETDIR   ?= $(PREFIX)/lib/systemd/system-preset
CATALOGDIR  ?= $(PREFIX)/lib/systemd/catalog
DBUSDIR     ?= $(PREFIX)/share/dbus-1
POLKITDIR   ?= $(PREFIX)/share/polkit-1
MANDIR      ?= $(PREFIX)/share/man
DOCDIR      ?= $(PREFIX)/share/doc/banger
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR  ?= $(PREFIX)/share/zsh/vendor-completions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d

# Under sudo, the Rust of whoever called it serves.
ifneq ($(SUDO_USER),)
SUDO_HOME   := $(shell getent passwd "$(SUDO_USER)" | cut -d: -f6)
export PATH := $(PATH):$(SUDO_HOME)/.cargo/bin
ifneq ($(wildcard $(SUDO_HOME)/.rustup),)
export RUSTUP_HOME ?= $(SUDO_HOME)/.rustup
endif
endif

CARGO       ?= cargo
CARGO_FLAGS ?= --locked
PROFILE     ?= release
TARGET_DIR  := $(or $(CARGO_TARGET_DIR),target)
HOST        := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# cargo calls the profile dev, but its directory debug.
OUT         := $(patsubst dev,debug,$(PROFILE))

SERVICES    := banger-vmd banger-imaged banger-netd banger-sessiond banger-launch
# The agent has a profile of its own, for its size: it rides in every initramfs.
AGENT       := $(TARGET_DIR)/$(HOST)/agent/banger-agent
# What the command line, the interfaces and the events say about themselves: man pages, completions, catalog.
CLI_DOCS    := $(TARGET_DIR)/$(OUT)/cli-docs
# The licences of the crates in the programs.
LICENSES    := $(TARGET_DIR)/$(OUT)/third-party-licenses

VERSION     := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
INSTALL     ?= install

.PHONY: all build install uninstall deb rpm dist release-interfaces check check-unit check-lints unit-tests \
	check-packages check-units check-system check-newest check-release failpoints audit bench fuzz demo clean

all: build

# The agent runs as PID 1 of any image, musl or glibc, so it must be static; --target keeps the
# flag from build scripts and proc macros.
build: $(LICENSES)
	$(CARGO) build $(CARGO_FLAGS) --profile $(PROFILE) --workspace --exclude banger-agent --bins
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" \
		$(CARGO) build $(CARGO_FLAGS) --profile agent --target $(HOST) -p banger-agent
	rm -rf $(CLI_DOCS) && mkdir -p $(CLI_DOCS)
	$(TARGET_DIR)/$(OUT)/banger man $(CLI_DOCS)
	$(TARGET_DIR)/$(OUT)/banger-man dbus docs/formats $(CLI_DOCS)
	for shell in bash zsh fish; do \
		$(TARGET_DIR)/$(OUT)/banger completion $$shell >$(CLI_DOCS)/$$shell; \
	done

$(LICENSES): Cargo.lock Cargo.toml $(wildcard services/*/Cargo.toml) packaging/licenses
	@mkdir -p $(@D)
	CARGO="$(CARGO)" packaging/licenses notices >$@.new
	mv $@.new $@

# files DIR,FILES: install FILES, if there are any, in DIR; data names its own mode.
define files
$(if $(strip $(2)),$(INSTALL) -d "$(DESTDIR)$(strip $(1))" && \
	$(INSTALL) -m 644 $(2) "$(DESTDIR)$(strip $(1))")
endef

# Paths in units, D-Bus and configuration files are those of PREFIX=/usr; fix them for others.
INSTALLED_TEXT = $(wildcard $(addprefix $(DESTDIR),$(UNITDIR)/*banger* $(DBUSDIR)/system-services/*banger* \
	$(LIBDIR)/*.conf $(SYSUSERSDIR)/banger*.conf $(TMPFILESDIR)/banger*.conf))

install:
	$(INSTALL) -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(LIBEXECDIR)"
	$(INSTALL) -m 755 "$(TARGET_DIR)/$(OUT)/banger" "$(DESTDIR)$(BINDIR)"
	$(INSTALL) -m 755 $(SERVICES:%="$(TARGET_DIR)/$(OUT)/%") "$(AGENT)" "$(DESTDIR)$(LIBEXECDIR)"
	$(call files,$(UNITDIR),$(foreach t,service socket slice timer target path,$(wildcard units/*.$t)))
	$(INSTALL) -d "$(DESTDIR)$(GENERATORDIR)"
	ln -sfr "$(DESTDIR)$(LIBEXECDIR)/banger-netd" "$(DESTDIR)$(GENERATORDIR)/banger-netd-generator"
	$(call files,$(NETWORKDIR),$(wildcard units/network/*))
	$(call files,$(NMCONFDIR),$(wildcard units/network-manager/*.conf))
	$(call files,$(SYSUSERSDIR),$(wildcard units/sysusers.d/*.conf))
	$(call files,$(TMPFILESDIR),$(wildcard units/tmpfiles.d/*.conf))
	$(call files,$(SYSCTLDIR),$(wildcard units/sysctl.d/*.conf))
	$(call files,$(PRESETDIR),$(wildcard units/system-preset/*.preset))
	$(call files,$(CATALOGDIR),$(CLI_DOCS)/banger.catalog)
	$(call files,$(DBUSDIR)/interfaces,$(wildcard dbus/interfaces/*.xml))
	$(call files,$(DBUSDIR)/system.d,$(wildcard dbus/system.d/*.conf))
	$(call files,$(DBUSDIR)/system-services,$(wildcard dbus/system-services/*.service))
	$(call files,$(POLKITDIR)/actions,$(wildcard dbus/polkit/*.policy))
	$(call files,$(POLKITDIR)/rules.d,$(wildcard dbus/polkit/*.rules))
	$(call files,$(LIBDIR),$(wildcard packaging/config/*.conf))
	$(call files,$(MANDIR)/man1,$(CLI_DOCS)/*.1)
	$(call files,$(MANDIR)/man5,$(CLI_DOCS)/*.5)
	$(call files,$(MANDIR)/man7,$(CLI_DOCS)/*.7)
	$(INSTALL) -D -m 644 $(CLI_DOCS)/bash "$(DESTDIR)$(BASHCOMPDIR)/banger"
	$(INSTALL) -D -m 644 $(CLI_DOCS)/zsh "$(DESTDIR)$(ZSHCOMPDIR)/_banger"
	$(INSTALL) -D -m 644 $(CLI_DOCS)/fish "$(DESTDIR)$(FISHCOMPDIR)/banger.fish"
	$(call files,$(DOCDIR),$(wildcard README.md CONTRIBUTING.md docs/*.md) $(LICENSES))
	$(call files,$(DOCDIR)/examples,$(wildcard docs/formats/*.conf docs/formats/*.toml))
	$(if $(filter-out /usr/libexec/banger,$(LIBEXECDIR)),$(if $(INSTALLED_TEXT),sed -i \
		-e 's|/usr/libexec/banger|$(LIBEXECDIR)|g' -e 's|/usr/lib/banger|$(LIBDIR)|g' \
		-e 's|/usr/bin/banger|$(BINDIR)/banger|g' $(INSTALLED_TEXT)))

# The list is install's own: it is made once more, elsewhere, and its files are removed here.
uninstall:
	@tmp=$$(mktemp -d) && $(MAKE) --silent install DESTDIR="$$tmp" && \
		(cd "$$tmp" && find . ! -type d -printf '%P\0') | (cd "$(DESTDIR)/" && xargs -0 rm -f); \
		rm -rf "$$tmp"
	-rmdir "$(DESTDIR)$(LIBEXECDIR)" "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(DOCDIR)" 2>/dev/null

# ---- packages ----

ARCH := $(shell dpkg --print-architecture 2>/dev/null)
DEB  := $(TARGET_DIR)/debian/banger_$(VERSION)_$(ARCH).deb
DEB_INPUTS = Makefile $(SERVICES:%=$(TARGET_DIR)/$(OUT)/%) $(TARGET_DIR)/$(OUT)/banger $(AGENT) \
	$(shell find units dbus packaging docs README.md -type f 2>/dev/null)

deb: build
	$(MAKE) --no-print-directory $(DEB)

# debian/ is looked for in the top directory of a source tree, so give it one; what cargo has
# built is installed, not built again.
$(DEB): $(DEB_INPUTS)
	rm -rf $(TARGET_DIR)/debian && mkdir -p $(TARGET_DIR)/debian/banger
	cp -r packaging/debian $(TARGET_DIR)/debian/banger/
	cd $(TARGET_DIR)/debian/banger && BANGER_BUILT=$(CURDIR) PROFILE=$(PROFILE) \
		CARGO_TARGET_DIR=$(abspath $(TARGET_DIR)) debian/rules binary
	ls -l $(DEB)

RPM_TOP := $(abspath $(TARGET_DIR))/rpm
RPM_SPEC ?= packaging/rpm/banger.spec
# An rpm elsewhere than at home knows neither what is installed nor what Fedora has added to it.
RPM_FLAGS = $(if $(shell rpm --eval '%{?_unitdir}'),,--nodeps --load packaging/rpm/macros)

# What cargo has built is not built again; the tests have their own targets.
rpm: build
	rm -rf $(RPM_TOP)
	rpmbuild -bb --quiet --build-in-place --without check $(RPM_FLAGS) --define "_topdir $(RPM_TOP)" \
		--define "_rpmdir $(RPM_TOP)" --define "_rpmfilename %{NVRA}.rpm" $(RPM_SPEC)
	ls -l $(RPM_TOP)/*.rpm

dist:
	packaging/dist $(TARGET_DIR)/dist

# What the unit tests hold later versions to.
release-interfaces:
	$(CARGO) run --quiet --locked -p banger-man -- members dbus >dbus/released

# ---- tests ----

NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest)
# All of the workspace is always named, whatever of it is built or run: else features of what all share differ
# from one command to the next, and it is built again.
ALL := --locked --workspace

# The lab's machine is made beside what needs none.
check:
	$(CARGO) fmt --all --check
	@tests/lab/up --no-deb >/dev/null & lab=$$!; $(MAKE) --no-print-directory check-unit && wait $$lab
	$(MAKE) --no-print-directory check-packages
	$(MAKE) --no-print-directory check-system

check-unit: check-lints unit-tests

check-lints:
	$(CARGO) fmt --all --check
	packaging/check
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
		$(CARGO) doc $(ALL) --no-deps --document-private-items --quiet

unit-tests:
	$(CARGO) $(if $(NEXTEST),nextest run $(ALL) -E 'not package(banger-tests)',test $(ALL) --exclude banger-tests)

check-packages:
	$(MAKE) --no-print-directory deb BANGER_QUICK=1
	$(MAKE) --no-print-directory rpm
	tests/package/lint
	tests/lab/up --no-deb
	tests/package/lifecycle deb
	tests/package/lifecycle rpm

check-release:
	tests/package/dist
	$(MAKE) --no-print-directory deb BANGER_QUICK=1
	LAB_BUS=dbus-broker tests/lab/up --no-deb
	tests/package/lifecycle deb

check-newest:
	tests/newest

check-units:
	@tests/lab/sh $(CURDIR)/packaging/units verify
	@tests/lab/sh $(CURDIR)/packaging/units exposure

# Services that end where a test wants them to. They share what cargo has built for the tests, and
# leave its directory at once, so that nothing else can take them for the ordinary ones.
FAILPOINTS := $(abspath $(TARGET_DIR))/failpoints

failpoints:
	$(CARGO) build $(ALL) --bin banger-vmd --bin banger-imaged \
		--features banger-vmd/failpoints,banger-imaged/failpoints
	install -D -t $(FAILPOINTS) $(TARGET_DIR)/debug/banger-vmd $(TARGET_DIR)/debug/banger-imaged
	rm -f $(TARGET_DIR)/debug/banger-vmd $(TARGET_DIR)/debug/banger-imaged

# The tests are built here and run in the lab, which sees this directory.
IN_LAB = CARGO_TARGET_$(subst -,_,$(shell echo $(HOST) | tr a-z A-Z))_RUNNER=$(CURDIR)/tests/lab/test

check-system: failpoints
	tests/lab/up
	$(MAKE) --no-print-directory check-units
	$(IN_LAB) $(CARGO) test $(ALL) --quiet --bin banger-netd -- --ignored --test-threads=1
	BANGER_FAILPOINTS=$(FAILPOINTS) $(IN_LAB) \
		$(CARGO) $(if $(NEXTEST),nextest run,test) $(ALL) --test system $(ARGS)

# What becomes known of crates is no matter of a commit, so this is for every week and every release.
audit:
	$(CARGO) deny --locked check

bench:
	tests/lab/up
	tests/lab/add podman
	tests/lab/sh $(CURDIR)/tests/bench/boot
	tests/lab/sh $(CURDIR)/tests/bench/pull
	tests/lab/sh $(CURDIR)/tests/bench/network
	tests/lab/sh $(CURDIR)/tests/bench/ssh
	tests/lab/sh $(CURDIR)/tests/bench/sessions
	$(IN_LAB) $(CARGO) test $(ALL) --test figures

# What strangers give us, with libFuzzer: for cargo-fuzz and a nightly Rust.
TARGET  ?= layers
SECONDS ?= 60
fuzz:
	cd tests/fuzz && $(CARGO) +nightly run --quiet --bin seeds
	$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $(TARGET) -- -max_total_time=$(SECONDS) -rss_limit_mb=1024

demo:
	tests/demo

clean:
	$(CARGO) clean
