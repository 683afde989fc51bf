#include "pit/support/state.hpp"

#include <cstdio>

#include "pit/support/error.hpp"

namespace pit {

namespace {

constexpr std::size_t kNumberBytes = 8;

void append_number(std::string& bytes, std::uint64_t value) {
    char text[kNumberBytes];
    for (std::size_t i = 0; i < kNumberBytes; ++i) {
        text[i] = static_cast<char>(value >> (8 * i));
    }
    bytes.append(text, kNumberBytes);
}

std::uint64_t read_number(std::string_view bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < kNumberBytes; ++i) {
        value |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
    }
    return value;
}

std::string hex(std::uint64_t value) {
    char text[19];
    std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
    return text;
}

}  // namespace

Fingerprint& Fingerprint::bytes(std::string_view text) {
    for (const char c : text) {
        value_ = (value_ ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    }
    return *this;
}

Fingerprint& Fingerprint::number(std::uint64_t value) {
    std::string text;
    append_number(text, value);
    return bytes(text);
}

StateWriter::StateWriter(std::string_view magic, std::uint32_t version) : bytes_(magic) {
    number(version);
}

void StateWriter::number(std::uint64_t value) {
    append_number(bytes_, value);
}

void StateWriter::byte(std::uint8_t value) {
    bytes_.push_back(static_cast<char>(value));
}

std::string StateWriter::finish() {
    append_number(bytes_, Fingerprint().bytes(bytes_).value());
    return std::move(bytes_);
}

StateReader::StateReader(std::string_view bytes, std::string_view magic, std::uint32_t version, std::string what)
    : what_(std::move(what)) {
    if (bytes.size() < magic.size() + 2 * kNumberBytes || bytes.substr(0, magic.size()) != magic) {
        throw Error(what_ + ": the " + std::to_string(bytes.size()) + " bytes given do not start with " +
                    std::string(magic) + ", so they are damaged or not a state; give the bytes that state() returned");
    }
    const std::string_view body = bytes.substr(0, bytes.size() - kNumberBytes);
    const std::uint64_t stored = read_number(bytes.substr(body.size()));
    const std::uint64_t computed = Fingerprint().bytes(body).value();
    if (stored != computed) {
        throw Error(what_ + ": the state is corrupted: its checksum is " + hex(stored) + ", its bytes give " +
                    hex(computed) + "; restore from another checkpoint");
    }
    payload_ = body.substr(magic.size());
    const std::uint64_t found = number();
    if (found != version) {
        throw Error(what_ + ": the state has version " + std::to_string(found) + ", this build reads version " +
                    std::to_string(version) + "; restore it with the release that wrote it");
    }
}

void StateReader::need(std::size_t count) const {
    if (payload_.size() - at_ < count) {
        throw Error(what_ + ": the state ends too early; restore from another checkpoint");
    }
}

std::uint64_t StateReader::number() {
    need(kNumberBytes);
    const std::uint64_t value = read_number(payload_.substr(at_));
    at_ += kNumberBytes;
    return value;
}

std::uint8_t StateReader::byte() {
    need(1);
    return static_cast<std::uint8_t>(payload_[at_++]);
}

std::size_t StateReader::count(std::size_t item_bytes) {
    const std::uint64_t items = number();
    if (items > (payload_.size() - at_) / item_bytes) {
        throw Error(what_ + ": the state announces " + std::to_string(items) +
                    " items, more than its bytes hold; restore from another checkpoint");
    }
    return static_cast<std::size_t>(items);
}

void StateReader::finish() const {
    if (at_ != payload_.size()) {
        throw Error(what_ + ": the state has " + std::to_string(payload_.size() - at_) +
                    " extra bytes; restore from another checkpoint");
    }
}

void StateReader::expect(std::uint64_t expected, const std::string& name, const std::string& remedy) {
    const std::uint64_t found = number();
    if (found != expected) {
        throw Error(what_ + ": the state was written with " + name + " " + hex(found) + ", this run has " +
                    hex(expected) + "; " + remedy);
    }
}

}  // namespace pit
