// What cannot be seen from outside the program: the queue under threads, early ends, percentiles, the wire format.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bounded_queue.h"
#include "classify.h"
#include "decoder_pool.h"
#include "errors.h"
#include "files.h"
#include "image_folder.h"
#include "model_info.h"
#include "results.h"

TEST(BoundedQueue, EveryItemArrivesOnceFromManyThreads) {
  BoundedQueue<int> queue(3);
  std::atomic<int> working{4};
  std::vector<std::thread> producers;
  for (int t = 0; t < 4; ++t) {
    producers.emplace_back([&queue, &working, t] {
      for (int i = 0; i < 250; ++i) EXPECT_TRUE(queue.push(t * 250 + i));
      if (--working == 0) queue.close();
    });
  }
  std::vector<int> taken;
  while (const auto item = queue.pop()) taken.push_back(*item);
  for (std::thread &producer : producers) producer.join();
  std::sort(taken.begin(), taken.end());
  ASSERT_EQ(taken.size(), 1000U);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(taken[static_cast<size_t>(i)], i);
}

TEST(BoundedQueue, BlocksAProducerThatIsTooFast) {
  BoundedQueue<int> queue(2);
  std::atomic<int> pushed{0};
  std::thread producer([&] {
    while (queue.push(0)) ++pushed;
  });
  while (pushed < 2) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(pushed, 2);
  queue.close();
  producer.join();
  EXPECT_TRUE(queue.pop().has_value());
  EXPECT_TRUE(queue.pop().has_value());
  EXPECT_FALSE(queue.pop().has_value());
}

ModelShape small_batches() {
  ModelShape shape;
  shape.batch_size = 4;
  shape.image_size = 8;
  return shape;
}

const Preprocess kSmall{8, 8, Interpolation::kBicubic, {127.5F, 127.5F, 127.5F}, {127.5F, 127.5F, 127.5F}};

// A PNG of one grey pixel, by hand: signature, IHDR, IDAT, IEND.
std::string write_image() {
  const std::string bytes(
      "\x89PNG\r\n\x1a\n"
      "\0\0\0\x0dIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0\x3a\x7e\x9b\x55"
      "\0\0\0\x0aIDAT\x78\x9c\x63\x68\x02\0\0\x84\0\x83\xd0\x86\xce#"
      "\0\0\0\0IEND\xae\x42\x60\x82",
      67);
  const std::string path = testing::TempDir() + "grey.png";
  write_file_atomically(path, bytes.data(), bytes.size());
  return path;
}

TEST(DecoderPool, GivesFullBatchesAndEveryImageOnce) {
  std::vector<std::string> paths(30, write_image());
  for (const size_t missing : {0, 7, 8, 29}) paths[missing] = "/nonexistent/image.jpg";
  std::vector<std::string> errors;
  DecoderPool decoders(paths, kSmall, small_batches(), 3, [&](const std::string &error) { errors.push_back(error); });
  std::vector<size_t> seen;
  while (auto batch = decoders.next()) {
    EXPECT_EQ(batch->positions.size(), seen.size() < 24 ? 4U : 2U);
    ASSERT_EQ(batch->images.size(), 4U * 8 * 8 * 3 * sizeof(float));
    float value = 0;
    std::memcpy(&value, batch->images.data(), sizeof(value));
    EXPECT_EQ(value, (130 - 127.5F) / 127.5F);
    seen.insert(seen.end(), batch->positions.begin(), batch->positions.end());
    decoders.recycle(std::move(*batch));
  }
  std::sort(seen.begin(), seen.end());
  ASSERT_EQ(seen.size(), 26U);
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
  ASSERT_EQ(errors.size(), 4U);
  EXPECT_EQ(errors[0], "/nonexistent/image.jpg: there is no such file or directory");
}

TEST(DecoderPool, StopsWhenNobodyTakesTheRest) {
  const std::vector<std::string> paths(1000, write_image());
  DecoderPool decoders(paths, kSmall, small_batches(), 3, [](const std::string &) {});
  EXPECT_TRUE(decoders.next().has_value());
}

TEST(DecoderPool, EndsWhenThereIsNothingToDo) {
  const std::vector<std::string> none;
  const std::vector<std::string> missing(5, "/nonexistent/image.jpg");
  for (const size_t threads : {0, 1, 3}) {
    DecoderPool idle(none, kSmall, small_batches(), threads, [](const std::string &) {});
    EXPECT_FALSE(idle.next().has_value());
  }
  DecoderPool decoders(missing, kSmall, small_batches(), 2, [](const std::string &) {});
  EXPECT_FALSE(decoders.next().has_value());
}

TEST(ResultWriter, WritesEverythingAndReportsWhatItCannot) {
  const std::string root = testing::TempDir() + "results";
  const float logits[4] = {1, 2, 3, 4};
  ResultFolder folder(root, {"a/1_0.bin", "b/2_0.bin", "blocked/3_0.bin"});
  {
    ResultWriter writer(folder);
    writer.write({0, 1}, logits, 2);
  }
  EXPECT_EQ(read_file(root + "/a/1_0.bin", 100).size(), 8U);
  const auto second = read_file(root + "/b/2_0.bin", 100);
  EXPECT_EQ(std::memcmp(second.data(), logits + 2, 8), 0);
  write_file_atomically(root + "/blocked", logits, 4);
  ResultWriter writer(folder);
  writer.write({2}, logits, 2);
  EXPECT_THROW(writer.finish(), RunError);
  EXPECT_FALSE(writer.write({0}, logits, 2));
}

TEST(ChooseOutput, IsTheLogitsElseTheFirst) {
  EXPECT_EQ(choose_output("m", {"probabilities", "logits"}), 1U);
  EXPECT_EQ(choose_output("m", {"head/BiasAdd", "softmax"}), 0U);
  EXPECT_THROW(choose_output("m", {}), RunError);
}

TEST(OneLine, ShowsWhatATerminalCannotAsHexadecimal) {
  EXPECT_EQ(one_line("two  words\n and\tmore"), "two words and more");
  EXPECT_EQ(one_line("a\x1b[31m\x7f"), "a\\x1b[31m\\x7f");
  EXPECT_EQ(one_line("ёж 猫 \xf0\x9f\x90\x88"), "ёж 猫 \xf0\x9f\x90\x88");
  // A byte that begins nothing, an overlong form, half a character, a surrogate.
  EXPECT_EQ(one_line("\xff \xc0\xaf \xe7\x8c \xed\xa0\x80"), "\\xff \\xc0\\xaf \\xe7\\x8c \\xed\\xa0\\x80");
}

TEST(ModelInfo, NestsWithoutEnd) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  for (const char *name : {"num_classes", "class_names", "format", "preprocess", "colour"}) {
    const std::string text = "{\"format\": 1, \"preprocess\": {}, \"" + std::string(name) + "\": " + deep + "}";
    EXPECT_THROW(parse_model_info(text, "m"), RunError);
  }
  EXPECT_THROW(parse_model_info("{\"format\": 1, \"preprocess\": {\"mean\": " + deep + "}}", "m"), RunError);
}

TEST(Quantile, IsTheNearestRank) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(quantile(values, 0.50), 50);
  EXPECT_EQ(quantile(values, 0.99), 99);
  EXPECT_EQ(quantile(values, 1.0), 100);
  EXPECT_EQ(quantile(values, 0.0), 1);
  EXPECT_EQ(quantile({7}, 0.99), 7);
  EXPECT_EQ(quantile({}, 0.5), 0);
}

TEST(NameResults, AreThoseOfThePythonScripts) {
  // The same cases as tests/inference/test_postprocess.py.
  using Names = std::vector<std::string>;
  EXPECT_EQ(name_results({"a/1.jpg", "a/2.tar.png", "b/1.jpg"}), (Names{"a/1_0.bin", "a/2.tar_0.bin", "b/1_0.bin"}));
  EXPECT_EQ(name_results({"a/1.jpg", "a/1.png", "b/1.jpg"}), (Names{"a/1.jpg_0.bin", "a/1.png_0.bin", "b/1_0.bin"}));
  EXPECT_EQ(name_results({"a/1.jpg", "a/1.jpg.png", "a/1.png"}),
            (Names{"a/1.jpg_0.bin", "a/1.jpg.png_0.bin", "a/1.png_0.bin"}));
}

std::optional<std::string> find(const std::string &bytes) {
  return find_onnx_metadata(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size(), "key", "m.onnx");
}

TEST(OnnxMetadata, ReadsTheEntryOfTheKey) {
  // Field 1 as a number, field 14 (0x72) with key "k", field 14 with key "key" and value "text".
  const std::string other("\x08\x07\x72\x06\x0a\x01k\x12\x01v", 10);
  const std::string wanted("\x72\x0b\x0a\x03key\x12\x04text", 13);
  EXPECT_EQ(find(other + wanted), "text");
  EXPECT_EQ(find(wanted + other), "text");
  EXPECT_EQ(find(other), std::nullopt);
  EXPECT_EQ(find(""), std::nullopt);
}

TEST(OnnxMetadata, RefusesWhatIsDamaged) {
  for (const std::string &bytes : {std::string("\x72\x20\x0a"), std::string("\x0b"), std::string("\xff\xff\xff"),
                                   std::string("\x09\x01"), std::string(11, '\xff'),
                                   std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")}) {
    EXPECT_THROW(find(bytes), RunError);
  }
}
