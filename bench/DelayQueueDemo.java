import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.Channels;
import java.nio.channels.WritableByteChannel;
import java.util.Arrays;
import java.util.concurrent.DelayQueue;
import java.util.concurrent.Delayed;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;

/**
 * java.util.concurrent.DelayQueue and threads that take from it. The send records when it began.
 *
 * <p>DelayQueueDemo KIND MESSAGES RATE WORKERS PATIENCE, see foreign.py for what goes in and out.
 */
final class DelayQueueDemo {
    private static final int BODY_BYTES = 500;
    private static final int CHUNK = 256;
    private static final int REHEARSAL = 200_000;
    private static final int PUT_ROUNDS = 10; // processor time comes in hundredths of a second

    private final DelayQueue<Message> queue = new DelayQueue<>();
    private final AtomicInteger sent = new AtomicInteger();
    private final AtomicInteger early = new AtomicInteger();
    private final double[] begun; // by number, in seconds from the origin
    private volatile long origin;

    private static final class Message implements Delayed {
        final long due;
        final byte[] payload;

        Message(long due, byte[] payload) {
            this.due = due;
            this.payload = payload;
        }

        @Override
        public long getDelay(TimeUnit unit) {
            return unit.convert(due - System.nanoTime(), TimeUnit.NANOSECONDS);
        }

        @Override
        public int compareTo(Delayed other) {
            return Long.signum(due - ((Message) other).due);
        }
    }

    private DelayQueueDemo(int messages, int workers) {
        begun = new double[messages];
        Arrays.fill(begun, Double.NaN);
        for (int i = 0; i < workers; i++) {
            Thread thread = new Thread(this::work);
            thread.setDaemon(true);
            thread.start();
        }
    }

    private void work() {
        try {
            while (true) {
                Message message = queue.take();
                long now = System.nanoTime();
                begun[(int) ByteBuffer.wrap(message.payload).getLong()] = (now - origin) / 1e9;
                if (now < message.due) {
                    early.incrementAndGet();
                }
                sent.incrementAndGet();
            }
        } catch (InterruptedException ended) {
            Thread.currentThread().interrupt();
        }
    }

    private static byte[] body(int number) {
        byte[] payload = new byte[BODY_BYTES];
        ByteBuffer.wrap(payload).putLong(0, number);
        return payload;
    }

    private static long nanos(double seconds) {
        return (long) (seconds * 1e9);
    }

    private void finish(long until) {
        do { // at least once: the last one is counted before it is written
            LockSupport.parkNanos(5_000_000);
        } while (sent.get() < begun.length && System.nanoTime() < until);
    }

    /** Message i is put at start + i / rate, in runs whose times are kept: the same rules as those of the others. */
    private double[] offer(double[] delays, double rate, long began) {
        origin = began;
        double[] runs = new double[3 * delays.length];
        int used = 0;
        for (int done = 0; done < delays.length; ) {
            double elapsed = (System.nanoTime() - began) / 1e9;
            int due = Math.min(delays.length, (int) (elapsed * rate + 1e-3) + 1);
            int stop = Math.min(due, done + CHUNK);
            for (int i = done; i < stop; i++) {
                queue.put(new Message(System.nanoTime() + nanos(delays[i]), body(i)));
            }
            if (stop > done) {
                runs[used++] = stop;
                runs[used++] = elapsed;
                runs[used++] = (System.nanoTime() - began) / 1e9;
            }
            done = stop;
            if (stop < due) {
                Thread.yield();
            } else {
                LockSupport.parkNanos(began + nanos(stop / rate) - System.nanoTime());
            }
        }
        return Arrays.copyOf(runs, used);
    }

    /** Puts all of them, due at the same instant; returns the processor time that it took. */
    private double fill(byte[][] bodies, long due) {
        double before = cpu();
        for (int i = 0; i < begun.length; i++) {
            long now = System.nanoTime();
            queue.put(new Message(due == 0 ? now + nanos(3600) : due, bodies == null ? body(i) : bodies[i]));
        }
        return cpu() - before;
    }

    private static double cpu() {
        Object system = ManagementFactory.getOperatingSystemMXBean();
        return ((com.sun.management.OperatingSystemMXBean) system).getProcessCpuTime() / 1e9;
    }

    private static double heapInUse() {
        System.gc();
        return Runtime.getRuntime().totalMemory() - Runtime.getRuntime().freeMemory();
    }

    private static double[] readDelays() throws IOException {
        byte[] input = System.in.readAllBytes();
        double[] delays = new double[input.length / 8];
        ByteBuffer.wrap(input).order(ByteOrder.LITTLE_ENDIAN).asDoubleBuffer().get(delays);
        return delays;
    }

    private static void write(double[]... parts) throws IOException {
        WritableByteChannel out = Channels.newChannel(System.out);
        for (double[] part : parts) {
            ByteBuffer buffer = ByteBuffer.allocate(8 * part.length).order(ByteOrder.LITTLE_ENDIAN);
            buffer.asDoubleBuffer().put(part);
            out.write(buffer);
        }
    }

    public static void main(String[] arguments) throws IOException {
        String kind = arguments[0];
        int messages = Integer.parseInt(arguments[1]);
        double rate = Double.parseDouble(arguments[2]);
        int workers = Integer.parseInt(arguments[3]);
        double patience = Double.parseDouble(arguments[4]);
        double[] delays = readDelays();
        // The machine compiles what it has seen to be worth it: let it see this before anything is measured.
        double[] soon = new double[REHEARSAL];
        Arrays.fill(soon, 0.1);
        DelayQueueDemo rehearsal = new DelayQueueDemo(REHEARSAL, workers);
        rehearsal.offer(soon, 500_000, System.nanoTime());
        rehearsal.finish(System.nanoTime() + nanos(10));
        byte[][] bodies = new byte[kind.equals("put") ? messages : 0][];
        Arrays.setAll(bodies, DelayQueueDemo::body);
        DelayQueueDemo demo = new DelayQueueDemo(messages, workers);
        double before = heapInUse();
        double used = cpu();
        long began = System.nanoTime();
        double[] runs = {};
        double figure = 0;
        if (kind.equals("open")) {
            double longest = Arrays.stream(delays).max().orElse(0);
            runs = demo.offer(delays, rate, began);
            demo.finish(began + nanos(messages / rate + longest + patience));
        } else if (kind.equals("burst")) {
            demo.origin = began;
            demo.fill(null, began + nanos(1));
            demo.finish(began + nanos(60));
            figure = 1;
        } else if (kind.equals("put")) {
            for (int i = 0; i < PUT_ROUNDS; i++) {
                demo.queue.clear();
                figure += demo.fill(bodies, 0) / PUT_ROUNDS;
            }
        } else {
            demo.fill(null, 0);
            figure = heapInUse() - before;
        }
        double wall = (System.nanoTime() - began) / 1e9;
        used = cpu() - used;
        write(new double[] {figure, used, wall, demo.early.get()}, demo.begun, runs);
    }
}
