defmodule Beamr.IOTest do
  use Beamr.Case, async: true

  alias Beamr.{CallError, MemoryError, Trap}

  doctest Beamr.IO

  @page 65_536
  @mib 1_048_576

  defp pages(n), do: Beamr.instantiate!(~s|(module (memory (export "memory") #{n}))|)

  # Numbers that no memory reaches.
  @huge [
    @page + 1,
    2 ** 31,
    2 ** 32,
    2 ** 32 + 1,
    2 ** 40,
    2 ** 63 - 1,
    2 ** 63,
    2 ** 64 - 1,
    2 ** 64,
    2 ** 64 + 1,
    2 ** 100,
    10 ** 100
  ]

  describe "size/1" do
    test "is in bytes" do
      assert Beamr.IO.size(pages(3)) == {:ok, 3 * @page}
    end

    test "is 0 without an exported memory" do
      assert Beamr.IO.size(Beamr.instantiate!("(module)")) == {:ok, 0}
      assert Beamr.IO.size(Beamr.instantiate!("(module (memory 1))")) == {:ok, 0}
    end

    test "is 0 for a memory of no pages" do
      assert Beamr.IO.size(pages(0)) == {:ok, 0}
    end

    test "follows the memory as the guest grows it" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1 3)
          (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
        """)

      assert Beamr.call(wasm, "grow", [2]) == {:ok, [1]}
      assert Beamr.IO.size(wasm) == {:ok, 3 * @page}
      assert Beamr.call(wasm, "grow", [1]) == {:ok, [-1]}
      assert Beamr.IO.size(wasm) == {:ok, 3 * @page}
    end

    test "size!/1 answers the number" do
      assert Beamr.IO.size!(pages(1)) == @page
    end
  end

  describe "which memory" do
    test "the one that is exported as \"memory\", wherever it stands" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "a") 1) (memory (export "memory") 2) (memory (export "z") 3))
        """)

      assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
    end

    test "the only one, whatever its name" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "mem") 2) (data (i32.const 0) "hi"))|)
      assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
      assert Beamr.IO.read(wasm, 0, 2) == {:ok, "hi"}
    end

    test "the first exported, where none is called \"memory\"" do
      wasm =
        Beamr.instantiate!(
          ~S|(module (memory 1) (memory (export "b") 2) (memory (export "a") 3))|
        )

      assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
    end

    test "one memory under two names is one memory" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "a") (export "memory") 1))|)
      :ok = Beamr.IO.write(wasm, 0, "x")
      assert Beamr.IO.read(wasm, 0, 1) == {:ok, "x"}
    end

    test "without one there is nothing to read or write" do
      wasm = Beamr.instantiate!("(module)")
      assert Beamr.IO.read(wasm, 0, 0) == {:ok, ""}
      assert Beamr.IO.write(wasm, 0, "") == :ok

      for result <- [
            Beamr.IO.read(wasm, 0, 1),
            Beamr.IO.read(wasm, 1, 0),
            Beamr.IO.write(wasm, 0, "x"),
            Beamr.IO.read_string(wasm, 0)
          ] do
        assert {:error, %MemoryError{reason: :out_of_bounds, size: 0}} = result
      end
    end
  end

  describe "read/3" do
    setup do
      wasm = pages(1)
      bytes = for _ <- 1..256, byte <- 0..255, into: "", do: <<byte>>
      :ok = Beamr.IO.write(wasm, 0, bytes)
      {:ok, wasm: wasm, bytes: bytes}
    end

    test "answers the bytes", %{wasm: wasm} do
      assert Beamr.IO.read(wasm, 254, 4) == {:ok, <<254, 255, 0, 1>>}
    end

    test "up to the very end", %{wasm: wasm, bytes: bytes} do
      assert Beamr.IO.read(wasm, 0, @page) == {:ok, bytes}
      assert Beamr.IO.read(wasm, @page - 2, 2) == {:ok, <<254, 255>>}
    end

    test "one byte past the end is an error that says all numbers", %{wasm: wasm} do
      assert {:error, %MemoryError{} = error} = Beamr.IO.read(wasm, @page - 2, 3)

      assert %{reason: :out_of_bounds, offset: 65_534, length: 3, size: 65_536} = error
    end

    test "no bytes are there up to the end of memory, and not past it", %{wasm: wasm} do
      for offset <- [0, 1, @page - 1, @page] do
        assert Beamr.IO.read(wasm, offset, 0) == {:ok, ""}
      end

      for offset <- @huge do
        assert {:error, %MemoryError{reason: :out_of_bounds, offset: ^offset, length: 0}} =
                 Beamr.IO.read(wasm, offset, 0)
      end
    end

    test "numbers that no memory reaches are out of bounds", %{wasm: wasm} do
      for huge <- @huge, small <- [0, 1, @page - 1, @page] do
        for {offset, length} <- [{huge, small}, {small, huge}, {huge, huge}] do
          assert {:error, %MemoryError{reason: :out_of_bounds} = error} =
                   Beamr.IO.read(wasm, offset, length)

          assert {error.offset, error.length, error.size} == {offset, length, @page}
        end
      end
    end

    test "offset and length that come round to 0 in 64 bits are out of bounds", %{wasm: wasm} do
      for {offset, length} <- [{2 ** 64 - 1, 1}, {1, 2 ** 64 - 1}, {2 ** 63, 2 ** 63}] do
        assert {:error, %MemoryError{reason: :out_of_bounds}} =
                 Beamr.IO.read(wasm, offset, length)
      end
    end

    test "what was read does not change when the memory does", %{wasm: wasm} do
      {:ok, small} = Beamr.IO.read(wasm, 0, 4)
      {:ok, large} = Beamr.IO.read(wasm, 0, @page)
      :ok = Beamr.IO.write(wasm, 0, :binary.copy("x", @page))
      assert small == <<0, 1, 2, 3>>
      assert binary_part(large, 0, 4) == <<0, 1, 2, 3>>
    end

    test "read!/3 answers the bytes, or raises the error", %{wasm: wasm} do
      assert Beamr.IO.read!(wasm, 0, 2) == <<0, 1>>
      assert_raise MemoryError, fn -> Beamr.IO.read!(wasm, @page, 1) end
    end
  end

  describe "write/3" do
    test "writes the bytes and no others" do
      wasm = pages(1)
      assert Beamr.IO.write(wasm, 10, "hello") == :ok
      assert Beamr.IO.read(wasm, 9, 7) == {:ok, "\0hello\0"}
    end

    test "what the guest reads" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "get") (result i32) (i32.load (i32.const 8))))
        """)

      :ok = Beamr.IO.write(wasm, 8, <<-5::little-32>>)
      assert Beamr.call(wasm, "get", []) == {:ok, [-5]}
    end

    test "up to the very end" do
      wasm = pages(1)
      assert Beamr.IO.write(wasm, @page - 3, "end") == :ok
      assert Beamr.IO.read(wasm, @page - 3, 3) == {:ok, "end"}
    end

    test "past the end is an error that says all numbers, and writes nothing" do
      wasm = pages(1)
      assert {:error, %MemoryError{} = error} = Beamr.IO.write(wasm, @page - 2, ["en", ?d])
      assert %{reason: :out_of_bounds, offset: 65_534, length: 3, size: 65_536} = error
      assert Beamr.IO.read(wasm, @page - 2, 2) == {:ok, <<0, 0>>}
    end

    test "at numbers that no memory reaches is out of bounds" do
      wasm = pages(1)

      for offset <- @huge, data <- ["", "x", []] do
        assert {:error, %MemoryError{reason: :out_of_bounds, offset: ^offset}} =
                 Beamr.IO.write(wasm, offset, data)
      end
    end

    test "nothing may be written up to the end of memory" do
      wasm = pages(1)
      for data <- ["", [], ["", [[]]]], do: assert(Beamr.IO.write(wasm, @page, data) == :ok)
    end

    test "takes iodata of every shape" do
      part = binary_part("__sub__", 2, 3)

      shapes = [
        bytes: [0, 1, 127, 128, 255],
        charlist: ~c"hello",
        binaries: ["he", "", "llo"],
        nested: [[["h"], ?e], [[[[]]], "l" | [?l | [[?o]]]]],
        improper: ["he", ?l | "lo"],
        only_a_tail: [[] | "hello"],
        part: part,
        parts: [part, [part | part]],
        very_many: Enum.map(1..20_000, &<<&1::16>>),
        deep_to_the_left: Enum.reduce(1..20_000, [], &[&2, rem(&1, 256)]),
        deep_to_the_right: Enum.reduce(1..20_000, "end", &[rem(&1, 256) | &2])
      ]

      for {shape, data} <- shapes do
        wasm = pages(1)
        flat = IO.iodata_to_binary(data)
        assert {shape, Beamr.IO.write(wasm, 7, data)} == {shape, :ok}
        assert Beamr.IO.read(wasm, 6, byte_size(flat) + 2) == {:ok, <<0, flat::binary, 0>>}
      end
    end

    test "takes any iodata" do
      wasm = pages(1)

      for_random_cases(200, fn ->
        data = random_iodata(4)
        flat = IO.iodata_to_binary(data)
        assert Beamr.IO.write(wasm, 100, data) == :ok
        assert Beamr.IO.read(wasm, 100, byte_size(flat)) == {:ok, flat}
      end)
    end

    test "raises for what is no iodata, and writes nothing" do
      wasm = pages(1)

      for data <- [
            ["ok", 1.0],
            ["ok", :bad],
            ["ok", nil],
            ["ok", {1}],
            ["ok", <<1::3>>],
            ["ok" | 1],
            ["ok" | :bad],
            ["ok" | <<1::3>>],
            ["ok", ["ok", [:bad]]],
            [List.duplicate(0, 20_000), :bad]
          ] do
        message = "not iodata: #{inspect(data)}"
        assert_raise ArgumentError, message, fn -> Beamr.IO.write(wasm, 0, data) end
      end

      assert Beamr.IO.read(wasm, 0, 2) == {:ok, <<0, 0>>}
    end

    test "raises for integers that are no bytes, and writes nothing" do
      wasm = pages(1)

      for number <- [-1, -256, 256, 257, 511, 2 ** 16, 2 ** 32, 2 ** 64, 10 ** 100, ?→] do
        for data <- [[number], ["ok", number], [[number] | "ok"]] do
          assert_raise ArgumentError, fn -> Beamr.IO.write(wasm, 0, data) end
        end
      end

      assert Beamr.IO.read(wasm, 0, 2) == {:ok, <<0, 0>>}
    end

    test "takes the offset and the data in either order" do
      wasm = pages(1)
      :ok = Beamr.IO.write(wasm, 8, "one")
      :ok = Beamr.IO.write(wasm, ["t", "wo"], 11, memory: "memory")
      :ok = Beamr.IO.write!(wasm, "!", 14)
      assert Beamr.IO.read(wasm, 8, 7) == {:ok, "onetwo!"}

      assert {:error, %MemoryError{reason: :out_of_bounds, offset: @page, length: 3}} =
               Beamr.IO.write(wasm, "end", @page)
    end

    test "write!/3 answers :ok, or raises the error" do
      wasm = pages(1)
      assert Beamr.IO.write!(wasm, 0, "x") == :ok
      assert_raise MemoryError, fn -> Beamr.IO.write!(wasm, @page, "x") end
    end
  end

  # Iodata of every shape that iodata has.
  defp random_iodata(0), do: random_leaf()

  defp random_iodata(depth) do
    items = for _ <- 0..:rand.uniform(4), do: random_item(depth - 1)

    case :rand.uniform(4) do
      1 -> random_leaf()
      2 -> items
      3 -> items ++ random_leaf()
      4 -> items ++ random_iodata(depth - 1)
    end
  end

  defp random_item(depth) do
    if :rand.uniform(2) == 1, do: :rand.uniform(256) - 1, else: random_iodata(depth)
  end

  defp random_leaf do
    bytes = :rand.bytes(:rand.uniform(200) - 1)
    start = :rand.uniform(byte_size(bytes) + 1) - 1
    binary_part(bytes, start, :rand.uniform(byte_size(bytes) - start + 1) - 1)
  end

  describe "read_string" do
    test "answers the bytes before the first NUL" do
      wasm = pages(1)
      :ok = Beamr.IO.write(wasm, 100, "one\0two\0")
      assert Beamr.IO.read_string(wasm, 100) == {:ok, "one"}
      assert Beamr.IO.read_string(wasm, 101) == {:ok, "ne"}
      assert Beamr.IO.read_string(wasm, 103) == {:ok, ""}
      assert Beamr.IO.read_string(wasm, 104) == {:ok, "two"}
    end

    test "whatever the bytes are" do
      wasm = pages(1)
      bytes = :binary.list_to_bin(Enum.to_list(1..255))
      :ok = Beamr.IO.write(wasm, 0, bytes)
      assert Beamr.IO.read_string(wasm, 0) == {:ok, bytes}
    end

    for chunk <- [
          1,
          2,
          3,
          7,
          8,
          9,
          4095,
          4096,
          4097,
          65_536,
          2 ** 40,
          2 ** 63,
          2 ** 64,
          10 ** 100
        ] do
      test "by chunks of #{chunk}: strings of every length about a chunk's end" do
        wasm = pages(1)

        for length <- [0, 1, 2, 6, 7, 8, 9, 10, 15, 16, 17, 4094, 4095, 4096, 4097, 8192] do
          string = :binary.copy("s", length)
          :ok = Beamr.IO.write(wasm, 13, [string, 0, "behind"])
          assert Beamr.IO.read_string(wasm, 13, unquote(chunk)) == {:ok, string}
        end
      end

      test "by chunks of #{chunk}: the NUL is the very last byte of memory" do
        wasm = pages(1)

        for length <- [0, 1, 6, 7, 8, 9, 4095, 4096, 5000] do
          string = :binary.copy("s", length)
          offset = @page - length - 1
          :ok = Beamr.IO.write(wasm, offset, [string, 0])
          assert Beamr.IO.read_string(wasm, offset, unquote(chunk)) == {:ok, string}
        end
      end

      test "by chunks of #{chunk}: no NUL before the end of memory" do
        wasm = pages(1)
        :ok = Beamr.IO.write(wasm, @page - 5000, :binary.copy("s", 5000))

        for length <- [1, 6, 7, 8, 9, 4095, 4096, 5000] do
          offset = @page - length

          assert {:error, %MemoryError{reason: :unterminated, offset: ^offset, size: @page}} =
                   Beamr.IO.read_string(wasm, offset, unquote(chunk))
        end
      end
    end

    test "begins inside the memory, or is out of bounds" do
      wasm = pages(1)

      for offset <- [@page | @huge] do
        assert {:error, %MemoryError{reason: :out_of_bounds, offset: ^offset, size: @page}} =
                 Beamr.IO.read_string(wasm, offset)
      end
    end

    test "of more than a MiB" do
      wasm = pages(64)
      string = :binary.copy("s", 2 * @mib + 5)
      :ok = Beamr.IO.write(wasm, 3, [string, 0])

      for chunk <- [1, 4096, 2 ** 40],
          do: assert(Beamr.IO.read_string(wasm, 3, chunk) == {:ok, string})
    end

    test "of more than a MiB, without a NUL" do
      wasm = pages(32)
      :ok = Beamr.IO.write(wasm, 0, :binary.copy("s", 2 * @mib))
      assert {:error, %MemoryError{reason: :unterminated}} = Beamr.IO.read_string(wasm, 0)
    end

    test "read_string!/3 answers the string, or raises the error" do
      wasm = pages(1)
      :ok = Beamr.IO.write(wasm, 0, "str\0")
      assert Beamr.IO.read_string!(wasm, 0) == "str"
      assert Beamr.IO.read_string!(wasm, 0, 2) == "str"
      assert_raise MemoryError, fn -> Beamr.IO.read_string!(wasm, @page) end
    end
  end

  describe "long reads and writes" do
    test "of sizes about a MiB" do
      wasm = pages(64)

      for size <- [@mib - 1, @mib, @mib + 1, 3 * @mib + 7] do
        bytes = :rand.bytes(size)
        assert Beamr.IO.write(wasm, 5, bytes) == :ok
        assert Beamr.IO.read(wasm, 5, size) == {:ok, bytes}
      end
    end

    test "of a whole memory" do
      wasm = pages(64)
      bytes = :rand.bytes(64 * @page)
      assert Beamr.IO.write(wasm, 0, [bytes]) == :ok
      assert Beamr.IO.read(wasm, 0, 64 * @page) == {:ok, bytes}
    end

    test "that do not fit are out of bounds, and write nothing" do
      wasm = pages(32)
      bytes = :binary.copy("x", 2 * @mib)

      assert {:error, %MemoryError{reason: :out_of_bounds, length: 2_097_152}} =
               Beamr.IO.write(wasm, 1, bytes)

      assert Beamr.IO.read(wasm, 0, 2) == {:ok, <<0, 0>>}
      assert {:error, %MemoryError{}} = Beamr.IO.read(wasm, 1, 2 * @mib)
    end

    test "are there while a guest runs" do
      wasm = Beamr.instantiate!(String.replace(endless(), "\"memory\") 1", "\"memory\") 64"))
      start_endless(wasm)
      bytes = :rand.bytes(2 * @mib)
      assert Beamr.IO.write(wasm, 8, bytes) == :ok
      assert Beamr.IO.read(wasm, 8, 2 * @mib) == {:ok, bytes}
    end
  end

  describe "malloc/2, free/2 and write_string/2" do
    setup do
      {:ok, wasm: Beamr.instantiate!(~s|(module (memory (export "memory") 1) #{bump_malloc()})|)}
    end

    test "malloc/2 answers what the guest's malloc does", %{wasm: wasm} do
      assert Beamr.IO.malloc(wasm, 10) == {:ok, 1024}
      assert Beamr.IO.malloc(wasm, 0) == {:ok, 1034}
      assert Beamr.IO.malloc!(wasm, 1) == 1034
    end

    test "free/2 gives the guest's free the pointer", %{wasm: wasm} do
      assert Beamr.IO.free(wasm, 1024) == :ok
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<1024::little-32>>}
      assert Beamr.IO.free!(wasm, 0) == :ok
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<0::32>>}
    end

    test "write_string/2 writes the string and a NUL, in room for both", %{wasm: wasm} do
      :ok = Beamr.IO.write(wasm, 1000, :binary.copy("x", 100))
      assert Beamr.IO.write_string(wasm, "hello") == {:ok, 1024}
      assert Beamr.IO.read(wasm, 1023, 8) == {:ok, "xhello\0x"}
      assert Beamr.IO.malloc(wasm, 1) == {:ok, 1030}
    end

    test "write_string/2 takes iodata", %{wasm: wasm} do
      {:ok, pointer} = Beamr.IO.write_string(wasm, ["he", [?l | "lo"]])
      assert Beamr.IO.read_string(wasm, pointer) == {:ok, "hello"}
    end

    test "write_string/2 of nothing writes a NUL", %{wasm: wasm} do
      :ok = Beamr.IO.write(wasm, 1024, "xx")
      assert Beamr.IO.write_string!(wasm, "") == 1024
      assert Beamr.IO.read(wasm, 1024, 2) == {:ok, "\0x"}
    end

    test "write_string/2 raises for what is no iodata, before anything is allocated", %{
      wasm: wasm
    } do
      for data <- [["ok", 256], ["ok" | 1], [:bad], [<<1::3>>]] do
        assert_raise ArgumentError, fn -> Beamr.IO.write_string(wasm, data) end
      end

      assert Beamr.IO.malloc(wasm, 1) == {:ok, 1024}
    end

    test "write_string/2 of more than a MiB" do
      wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 64) #{bump_malloc()})|)
      string = :binary.copy("s", 2 * @mib)
      {:ok, pointer} = Beamr.IO.write_string(wasm, string)
      assert Beamr.IO.read_string(wasm, pointer) == {:ok, string}
    end

    test "a malloc that answers 0 has failed" do
      wasm = Beamr.instantiate!(malloc("(param i32) (result i32) (i32.const 0)"))
      failed = {:error, %MemoryError{reason: :malloc_failed, length: 6}}
      assert Beamr.IO.malloc(wasm, 6) == failed
      assert Beamr.IO.write_string(wasm, "hello") == failed
      assert_raise MemoryError, fn -> Beamr.IO.malloc!(wasm, 6) end
      assert_raise MemoryError, fn -> Beamr.IO.write_string!(wasm, "hello") end
    end

    test "a malloc of 64 bits that answers 0 has failed" do
      wasm = Beamr.instantiate!(malloc("(param i64) (result i64) (i64.const 0)"))
      assert {:error, %MemoryError{reason: :malloc_failed}} = Beamr.IO.malloc(wasm, 6)
    end

    test "pointers from 2^31 up are unsigned, and go back to free as they came" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "malloc") (param i32) (result i32) (i32.const 0x80000010))
          (func (export "free") (param i32) (i32.store (i32.const 0) (local.get 0))))
        """)

      assert Beamr.IO.malloc(wasm, 1) == {:ok, 0x80000010}
      assert Beamr.IO.free(wasm, 0x80000010) == :ok
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<0x80000010::little-32>>}
    end

    test "pointers of 64 bits are unsigned too" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") i64 1)
          (func (export "malloc") (param i64) (result i64) (i64.const -16))
          (func (export "free") (param i64) (i64.store (i64.const 0) (local.get 0))))
        """)

      assert Beamr.IO.malloc(wasm, 1) == {:ok, 2 ** 64 - 16}
      assert Beamr.IO.free(wasm, 2 ** 64 - 16) == :ok
      assert Beamr.IO.read(wasm, 0, 8) == {:ok, <<-16::little-64>>}
    end

    test "a call of malloc by its name answers signed integers, as any call does" do
      wasm = Beamr.instantiate!(malloc("(param i32) (result i32) (i32.const 0x80000010)"))
      assert Beamr.call(wasm, "malloc", [1]) == {:ok, [0x80000010 - 2 ** 32]}
    end

    test "a string that malloc found no real room for is out of bounds, the NUL included" do
      wasm = Beamr.instantiate!(malloc("(param i32) (result i32) (i32.const 65531)"))

      assert {:error, %MemoryError{reason: :out_of_bounds, offset: 65_531, length: 6}} =
               Beamr.IO.write_string(wasm, "hello")

      assert Beamr.IO.read(wasm, 65_531, 5) == {:ok, <<0::40>>}
      assert {:ok, 65_531} = Beamr.IO.write_string(wasm, "hell")
    end

    test "what is not exported is an unknown function" do
      wasm = pages(1)

      for {result, name} <- [
            {Beamr.IO.malloc(wasm, 1), "malloc"},
            {Beamr.IO.write_string(wasm, "x"), "malloc"},
            {Beamr.IO.free(wasm, 1), "free"}
          ] do
        assert {:error, %CallError{reason: :unknown_function, function: ^name}} = result
      end
    end

    test "a length or pointer that the guest's type does not hold is a bad argument", %{
      wasm: wasm
    } do
      for result <- [Beamr.IO.malloc(wasm, 2 ** 32), Beamr.IO.free(wasm, 2 ** 32)] do
        assert {:error, %CallError{reason: :argument, wanted: :i32, given: 0x1_0000_0000}} =
                 result
      end
    end

    test "a trap in malloc or free is that trap" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "malloc") (param i32) (result i32) unreachable)
          (func (export "free") (param i32) unreachable))
        """)

      for result <- [
            Beamr.IO.malloc(wasm, 1),
            Beamr.IO.write_string(wasm, ""),
            Beamr.IO.free(wasm, 1)
          ] do
        assert {:error, %Trap{reason: :unreachable}} = result
      end
    end

    for {signature, reason} <- [
          {"(param i32)", :result},
          {"(param i32) (result i32 i32) (i32.const 8) (i32.const 9)", :result},
          {"(param i32) (result f64) (f64.const 8)", :result},
          {"(param i32) (result f32) (f32.const 0)", :result},
          {"(param i32) (result externref) (ref.null extern)", :result},
          {"(param i32 i32) (result i32) (i32.const 8)", :arity},
          {"(result i32) (i32.const 8)", :arity},
          {"(param funcref) (result i32) (i32.const 8)", :argument}
        ] do
      test "a malloc that is none: #{signature}" do
        wasm = Beamr.instantiate!(malloc(unquote(signature)))

        for result <- [Beamr.IO.malloc(wasm, 6), Beamr.IO.write_string(wasm, "hello")] do
          assert {:error, %CallError{reason: unquote(reason), function: "malloc"}} = result
        end
      end
    end

    test "a free that is none" do
      wasm = Beamr.instantiate!(~S|(module (func (export "free")))|)

      assert {:error, %CallError{reason: :arity, function: "free"}} = Beamr.IO.free(wasm, 8)
    end

    test "a free that answers something is as good" do
      wasm =
        Beamr.instantiate!(
          ~S|(module (func (export "free") (param i32) (result i32) (i32.const 3)))|
        )

      assert Beamr.IO.free(wasm, 8) == :ok
    end

    defp malloc(signature) do
      ~s|(module (memory (export "memory") 1) (func (export "malloc") #{signature}))|
    end
  end

  describe "a memory of 64 bits" do
    test "is read and written past 2^32" do
      wasm =
        Beamr.instantiate!("""
        (module
          (memory (export "memory") i64 65537)
          (func (export "malloc") (param i64) (result i64) (i64.const 0x1_0000_0008))
          (func (export "get") (result i64) (i64.load (i64.const 0x1_0000_0008))))
        """)

      assert Beamr.IO.size(wasm) == {:ok, 2 ** 32 + @page}
      assert Beamr.IO.write_string(wasm, "7 bytes") == {:ok, 2 ** 32 + 8}
      assert Beamr.IO.read_string(wasm, 2 ** 32 + 8) == {:ok, "7 bytes"}
      <<number::little-64>> = "7 bytes\0"
      assert Beamr.call(wasm, "get", []) == {:ok, [number]}
      assert Beamr.IO.read(wasm, 2 ** 32 + @page, 0) == {:ok, ""}

      assert {:error, %MemoryError{reason: :out_of_bounds}} =
               Beamr.IO.read(wasm, 2 ** 32 + @page - 1, 2)
    end
  end

  describe "inside an import" do
    test "everything works, malloc included" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "greet" (func $greet (param i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 512) "world\\00")
            #{bump_malloc()}
            (func (export "f") (result i32) (call $greet (i32.const 512))))
          """,
          imports: %{
            "env" => %{
              "greet" => fn wasm, pointer ->
                name = Beamr.IO.read_string!(wasm, pointer)
                greeting = Beamr.IO.write_string!(wasm, ["hello ", name])
                :ok = Beamr.IO.free(wasm, pointer)
                greeting
              end
            }
          }
        )

      assert {:ok, [pointer]} = Beamr.call(wasm, "f", [])
      assert Beamr.IO.read_string(wasm, pointer) == {:ok, "hello world"}
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<512::little-32>>}
    end

    test "other processes reach the memory as well" do
      wasm = holder()
      held = start_hold(wasm)
      assert Beamr.IO.size(wasm) == {:ok, @page}
      assert Beamr.IO.write(wasm, 0, "there") == :ok
      assert Beamr.IO.read(wasm, 0, 5) == {:ok, "there"}
      send(held.pid, :go_on)
      Task.await(held)
      assert Beamr.IO.read(wasm, 0, 5) == {:ok, "there"}
    end
  end

  describe "a closed instance" do
    test "is closed, whatever is asked of it" do
      wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1) #{bump_malloc()})|)
      :ok = Beamr.close(wasm)

      for {function, args} <- [
            size: [],
            read: [0, 1],
            read: [0, 0],
            read: [2 ** 64, 1],
            read: [0, 2 * @mib],
            write: ["x", 0],
            write: [:binary.copy("x", 2 * @mib), 0],
            read_string: [0],
            read_string: [2 ** 64]
          ] do
        assert {:error, %MemoryError{reason: :closed}} = apply(Beamr.IO, function, [wasm | args])
      end

      for {function, args} <- [malloc: [1], free: [1], write_string: ["x"]] do
        assert {:error, %CallError{reason: :closed}} = apply(Beamr.IO, function, [wasm | args])
      end
    end
  end

  describe "guards" do
    @functions [
      size: [],
      read: [0, 1],
      write: [0, "x"],
      write: ["x", 0],
      read_string: [0],
      read_string: [0, 8],
      write_string: ["x"],
      malloc: [1],
      free: [1]
    ]
    @no_guests [nil, true, 0, -1, 1.5, "wasm", <<1::3>>, [], ~c"wasm", {}, {:a}, {1, 2}, %{}]
    @no_naturals [-1, -(2 ** 63), -(10 ** 100), 0.0, 1.5, :one, nil, "1", <<1::3>>, [1], {}, %{}]
    @no_iodata [:x, nil, 1, 1.5, <<1::3>>, {}, %{}]

    defp refused(function, args) do
      for name <- [function, :"#{function}!"] do
        assert_raise FunctionClauseError, fn -> apply(Beamr.IO, name, args) end
      end
    end

    for {function, args} <- @functions do
      test "#{function}(guest, #{inspect(args)}) refuses what is no guest" do
        others = [make_ref(), fn -> nil end, hd(Port.list()), Beamr.compile!("(module)")]
        for term <- @no_guests ++ others, do: refused(unquote(function), [term | unquote(args)])
      end
    end

    for {function, before, rest} <- [
          {:read, [], [1]},
          {:read, [0], []},
          {:write, [], ["x"]},
          {:write, ["x"], []},
          {:read_string, [], []},
          {:read_string, [], [8]},
          {:read_string, [0], []},
          {:malloc, [], []},
          {:free, [], []}
        ] do
      position = length(before) + 2

      test "#{function}/#{length(before ++ rest) + 2} refuses what is no number from 0 up, as argument #{position}" do
        wasm = pages(1)

        for term <- @no_naturals do
          refused(unquote(function), [wasm] ++ unquote(before) ++ [term] ++ unquote(rest))
        end
      end
    end

    test "read_string/3 refuses chunks of nothing" do
      refused(:read_string, [pages(1), 0, 0])
    end

    test "write/3 refuses what is neither a binary nor a list" do
      for term <- @no_iodata do
        refused(:write, [pages(1), 0, term])
        refused(:write, [pages(1), term, 0])
      end
    end

    test "write_string/2 refuses what is neither a binary nor a list" do
      for term <- @no_iodata, do: refused(:write_string, [pages(1), term])
    end

    test "an instance that was tampered with raises" do
      wasm = pages(1)

      for ref <- [nil, 1, make_ref(), wasm.module.ref] do
        forged = %{wasm | ref: ref}
        assert_raise ArgumentError, fn -> Beamr.IO.size(forged) end
        assert_raise ArgumentError, fn -> Beamr.IO.read(forged, 0, 1) end
        assert_raise ArgumentError, fn -> Beamr.IO.write(forged, 0, "x") end
        assert_raise ArgumentError, fn -> Beamr.IO.read_string(forged, 0) end
        assert_raise ArgumentError, fn -> Beamr.IO.malloc(forged, 1) end
      end
    end

    for {function, args} <- @functions do
      test "#{function}(guest, #{inspect(args)}) exits where a pid or name stands for no guest" do
        {dead, monitor} = spawn_monitor(fn -> :ok end)
        assert_receive {:DOWN, ^monitor, :process, ^dead, _reason}, 10_000

        for guest <- [dead, :nobody, {:nobody, node()}, {:global, :nobody}] do
          assert {:noproc, _mfa} =
                   catch_exit(apply(Beamr.IO, unquote(function), [guest | unquote(args)]))
        end
      end
    end
  end

  describe "against a model" do
    test "any sequence of reads, writes and strings" do
      for_random_cases(20, fn ->
        wasm = pages(1)

        model =
          Enum.reduce(1..100, :binary.copy(<<0>>, @page), fn _, model ->
            step(:rand.uniform(4), wasm, model, random_offset())
          end)

        assert Beamr.IO.read(wasm, 0, @page) == {:ok, model}
      end)
    end

    defp random_offset do
      case :rand.uniform(10) do
        1 -> @page + :rand.uniform(100) - 50
        2 -> Enum.random(@huge)
        3 -> :rand.uniform(@page)
        _ -> :rand.uniform(500)
      end
    end

    defp step(1, wasm, model, offset) do
      data = random_iodata(3)
      flat = IO.iodata_to_binary(data)
      length = byte_size(flat)

      case Beamr.IO.write(wasm, offset, data) do
        :ok ->
          overwrite(model, offset, flat)

        {:error, %MemoryError{reason: :out_of_bounds, length: ^length}} ->
          assert offset + length > @page
          model
      end
    end

    defp step(2, wasm, model, offset) do
      length = :rand.uniform(300) - 1

      case Beamr.IO.read(wasm, offset, length) do
        {:ok, bytes} -> assert bytes == binary_part(model, offset, length)
        {:error, %MemoryError{reason: :out_of_bounds}} -> assert offset + length > @page
      end

      model
    end

    defp step(3, wasm, model, offset) do
      chunk = Enum.random([1, 2, 3, 7, 8, 9, 64, 4096])

      case Beamr.IO.read_string(wasm, offset, chunk) do
        {:ok, string} ->
          length = byte_size(string)
          assert binary_part(model, offset, length + 1) == string <> <<0>>
          assert :binary.match(string, <<0>>) == :nomatch

        {:error, %MemoryError{reason: :unterminated}} ->
          assert :binary.match(model, <<0>>, scope: {offset, @page - offset}) == :nomatch

        {:error, %MemoryError{reason: :out_of_bounds}} ->
          assert offset >= @page
      end

      model
    end

    # Strings up to the end of memory.
    defp step(4, wasm, model, _offset) do
      data = :binary.copy("e", :rand.uniform(20))
      offset = @page - byte_size(data)
      :ok = Beamr.IO.write(wasm, offset, data)
      binary_part(model, 0, offset) <> data
    end
  end
end
